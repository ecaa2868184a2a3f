//! The meters of a recorded bus, as a master finds them: requests in, the recorded answers out.
//!
//! With the requests of the master that was recorded, each request is answered as the same request was then: in order, from the beginning
//! again after the last, and not at all where nobody answered. What is the same is told apart by the address, primary or selected, so
//! that meters may be asked in another order than then. A frame count bit makes no other request.
//!
//! Without requests (the frames of meters alone), a meter answers as the standard has it: to SND_NKE and to its selection with E5, to
//! REQ_UD2 with its telegrams, one readout after the other.
//!
//! Source: EN 13757-2:2018, 5.5; EN 13757-3:2018, 11.3 (selection).
//!
//! Not supported: time-outs, baud rates and collisions: `simulate mbus` has them.

use std::collections::HashMap;

use crate::{
    capture::Way,
    mbus::{
        Answer, Frame, FrameError, MAX_FRAME, Pattern, Secondary, control,
        frame::address::{BROADCAST, EVERYONE, LAST, SELECTED},
    },
};

/// Selection of a slave (CI), and the same with the high byte first.
const SELECT: [u8; 2] = [0x52, 0x56];

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Asked {
    /// By primary address.
    Primary(u8),
    /// Who was selected by this frame.
    Selected(Vec<u8>),
}

/// A request, and what came then.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exchange {
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// What was recorded of somebody, and how far it was played.
#[derive(Debug, Default)]
struct Script {
    exchanges: Vec<Exchange>,
    next: usize,
}

/// A meter of which only frames are known.
#[derive(Debug)]
struct Meter {
    address: u8,
    secondary: Option<Secondary>,
    /// Each of its telegrams.
    readouts: Vec<Vec<Vec<u8>>>,
    /// Which readout, and which telegram of it.
    next: (usize, usize),
}

/// The meters of a recorded bus.
#[derive(Debug, Default)]
pub(super) struct Slaves {
    scripts: HashMap<Asked, Script>,
    meters: Vec<Meter>,
    /// The frame that selected somebody last.
    selected: Option<Vec<u8>>,
    /// What the master sends, until it is a frame.
    buffer: Vec<u8>,
}

/// Takes the whole frames out of bytes, and what is none; what may become one stays.
fn frames(bytes: &mut Vec<u8>, mut each: impl FnMut(&[u8], Frame<'_>)) {
    let mut head = 0usize;
    while let Some(rest) = bytes.get(head..).filter(|rest| !rest.is_empty()) {
        let length = match Frame::parse(rest) {
            Ok((frame, length)) => {
                each(rest.get(..length).unwrap_or_default(), frame);
                length
            }
            Err(FrameError::Incomplete(_)) if rest.len() < MAX_FRAME => break,
            Err(_) => 1,
        };
        head = head.saturating_add(length);
    }
    bytes.drain(..head);
}

/// A request without its frame count bit, and whom it asks; None where it is none.
fn request(frame: Frame<'_>, selected: Option<&Vec<u8>>) -> Option<(Vec<u8>, Asked)> {
    let is_request = |control: u8| control & control::FROM_MASTER != 0;
    let (same, address) = match frame {
        Frame::Short { control, address } if is_request(control) => {
            (Frame::Short { control: control & !control::FCB, address }.emit(), address)
        }
        Frame::Long { control, address, ci, data } if is_request(control) => {
            (Frame::Long { control: control & !control::FCB, address, ci, data }.emit(), address)
        }
        _ => return None,
    };
    let asked = match (frame, selected) {
        (Frame::Long { address: SELECTED, ci, .. }, _) if SELECT.contains(&ci) => Asked::Selected(same.clone()),
        (Frame::Short { control: control::SND_NKE, address: SELECTED }, _) => Asked::Primary(SELECTED),
        (_, Some(selected)) if address == SELECTED => Asked::Selected(selected.clone()),
        _ => Asked::Primary(address),
    };
    Some((same, asked))
}

impl Slaves {
    /// Of what went over a bus, in order.
    pub(super) fn of(recorded: &[(Way, Vec<u8>)]) -> Self {
        let mut slaves = Self::default();
        if recorded.iter().any(|(way, _)| *way == Way::ToMeter) {
            slaves.learn_exchanges(recorded);
        } else {
            let mut bytes: Vec<u8> = recorded.iter().flat_map(|(_, bytes)| bytes).copied().collect();
            // What breaks off at the end is no frame.
            frames(&mut bytes, |bytes, frame| slaves.learn_answer(bytes, frame));
        }
        slaves
    }

    /// How many exchanges or readouts it knows.
    pub(super) fn len(&self) -> usize {
        let exchanges = self.scripts.values().flat_map(|script| &script.exchanges);
        let answered = exchanges.filter(|exchange| !exchange.answer.is_empty()).count();
        answered.saturating_add(self.meters.iter().map(|meter| meter.readouts.len()).sum())
    }

    fn learn_exchanges(&mut self, recorded: &[(Way, Vec<u8>)]) {
        let mut sent = Vec::new();
        let mut open: Option<(Vec<u8>, Asked)> = None;
        let mut answer = Vec::new();
        for (way, bytes) in recorded {
            if *way == Way::FromMeter {
                answer.extend_from_slice(bytes);
                continue;
            }
            sent.extend_from_slice(bytes);
            let mut asked = Vec::new();
            frames(&mut sent, |_, frame| {
                let selected = self.selected.clone();
                if let Some((same, who)) = request(frame, selected.as_ref()) {
                    if let Asked::Selected(by) = &who {
                        self.selected = Some(by.clone());
                    }
                    asked.push((same, who));
                }
            });
            for next in asked {
                if let Some((request, who)) = open.replace(next) {
                    self.learn(who, request, std::mem::take(&mut answer));
                }
                answer.clear();
            }
        }
        if let Some((request, who)) = open {
            self.learn(who, request, answer);
        }
        self.selected = None;
    }

    fn learn(&mut self, who: Asked, request: Vec<u8>, answer: Vec<u8>) {
        // A converter's echo is the converter's.
        let is_echo = answer.len() >= request.len() && {
            let toggled = answer.get(..request.len()).and_then(|begin| Frame::parse(begin).ok());
            toggled.and_then(|(frame, _)| self::request(frame, None)).is_some_and(|(same, _)| same == request)
        };
        let answer = if is_echo { answer.get(request.len()..).unwrap_or_default().to_vec() } else { answer };
        self.scripts.entry(who).or_default().exchanges.push(Exchange { request, answer });
    }

    fn learn_answer(&mut self, bytes: &[u8], frame: Frame<'_>) {
        let Ok(answer) = Answer::parse(&frame) else { return };
        let Frame::Long { address, .. } = frame else { return };
        let secondary = answer.secondary;
        let known = self.meters.iter().position(|meter| meter.address == address && meter.secondary == secondary);
        let at = known.unwrap_or_else(|| {
            self.meters.push(Meter { address, secondary, readouts: Vec::new(), next: (0, 0) });
            self.meters.len().saturating_sub(1)
        });
        let Some(meter) = self.meters.get_mut(at) else { return };
        let goes_on = meter.readouts.last().is_some_and(|readout| {
            let last = readout.last().and_then(|last| Frame::parse(last).ok());
            last.is_some_and(|(last, _)| Answer::parse(&last).is_ok_and(|last| last.more_follow() == Ok(true)))
        });
        match meter.readouts.last_mut() {
            // A telegram that came again is one.
            Some(readout) if goes_on && readout.last().is_some_and(|last| last == bytes) => {}
            Some(readout) if goes_on => readout.push(bytes.to_vec()),
            _ => meter.readouts.push(vec![bytes.to_vec()]),
        }
    }

    /// What the slaves answer to the bytes of a master; nothing while no request is whole.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.extend_from_slice(bytes);
        let mut answer = Vec::new();
        frames(&mut buffer, |_, frame| {
            let selected = self.selected.clone();
            if let Some((same, who)) = request(frame, selected.as_ref()) {
                // To two requests in a row there is one answer: the master did not wait for the first.
                answer = if self.meters.is_empty() { self.play(&same, &who) } else { self.speak(frame) };
                match who {
                    Asked::Selected(by) => self.selected = Some(by),
                    Asked::Primary(SELECTED) => self.selected = None,
                    Asked::Primary(_) => {}
                }
            }
        });
        self.buffer = buffer;
        answer
    }

    /// The next answer that was recorded to the same request.
    fn play(&mut self, request: &[u8], who: &Asked) -> Vec<u8> {
        let Some(script) = self.scripts.get_mut(who) else { return Vec::new() };
        let count = script.exchanges.len();
        let places = (script.next..count).chain(0..script.next);
        let mut found = None;
        for place in places {
            let Some(exchange) = script.exchanges.get(place) else { continue };
            if exchange.request == request {
                found = Some((place, exchange.answer.clone()));
                break;
            }
        }
        let Some((place, answer)) = found else { return Vec::new() };
        let next = place.saturating_add(1);
        script.next = if next < count { next } else { 0 };
        answer
    }

    /// What meters answer by the standard; the first of those who would.
    fn speak(&mut self, frame: Frame<'_>) -> Vec<u8> {
        let selected = self.selected.as_deref().and_then(pattern);
        let is_asked = |meter: &Meter, address: u8| match address {
            EVERYONE => true,
            SELECTED => {
                selected.is_some_and(|pattern| meter.secondary.is_some_and(|secondary| pattern.may_answer(secondary)))
            }
            _ => meter.address == address && address <= LAST,
        };
        match frame {
            Frame::Long { address: SELECTED, ci, .. } if SELECT.contains(&ci) => {
                let Some(pattern) = pattern(&frame.emit()) else { return Vec::new() };
                let mut found = false;
                for meter in &mut self.meters {
                    if meter.secondary.is_some_and(|secondary| pattern.may_answer(secondary)) {
                        found = true;
                        meter.begin();
                    }
                }
                if found { Frame::Ack.emit() } else { Vec::new() }
            }
            Frame::Short { control: control::SND_NKE, address } => {
                let mut found = false;
                for meter in self.meters.iter_mut().filter(|meter| is_asked(meter, address)) {
                    found = true;
                    meter.begin();
                }
                if found && address != BROADCAST { Frame::Ack.emit() } else { Vec::new() }
            }
            Frame::Short { control, address } if control & !control::FCB == control::REQ_UD2 => {
                let meter = self.meters.iter_mut().find(|meter| is_asked(meter, address));
                meter.map(Meter::answer).unwrap_or_default()
            }
            // Commands, which it carries out as well as a recording can.
            Frame::Long { control, address, .. } if control & !control::FCB == control::SND_UD => {
                let found = self.meters.iter().any(|meter| is_asked(meter, address));
                if found { Frame::Ack.emit() } else { Vec::new() }
            }
            _ => Vec::new(),
        }
    }
}

/// Whom a frame selects.
fn pattern(frame: &[u8]) -> Option<Pattern> {
    match Frame::parse(frame) {
        Ok((Frame::Long { data, .. }, _)) => Some(Pattern::from_bytes(*data.first_chunk()?)),
        _ => None,
    }
}

impl Meter {
    /// The next readout is begun, if this one was.
    fn begin(&mut self) {
        if self.next.1 > 0 {
            self.turn();
        }
    }

    fn turn(&mut self) {
        let next = self.next.0.saturating_add(1);
        self.next = (if next < self.readouts.len() { next } else { 0 }, 0);
    }

    fn answer(&mut self) -> Vec<u8> {
        let Some(readout) = self.readouts.get(self.next.0) else { return Vec::new() };
        let answer = readout.get(self.next.1).cloned().unwrap_or_default();
        self.next.1 = self.next.1.saturating_add(1);
        if self.next.1 >= readout.len() {
            self.turn();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nke(address: u8) -> Vec<u8> {
        Frame::Short { control: control::SND_NKE, address }.emit()
    }

    fn req(address: u8, toggled: bool) -> Vec<u8> {
        let bit = if toggled { control::FCB } else { 0 };
        Frame::Short { control: control::REQ_UD2 | bit, address }.emit()
    }

    fn select(id: u32) -> Vec<u8> {
        let data = Pattern::of_id(id).to_bytes();
        Frame::Long { control: control::SND_UD, address: SELECTED, ci: 0x52, data: &data }.emit()
    }

    /// A telegram with one byte of data, and perhaps more to follow.
    fn telegram(address: u8, id: u32, value: u8, more: bool) -> Vec<u8> {
        let mut data = Pattern { id, manufacturer: 0x2C2D, version: 1, medium: 4 }.to_bytes().to_vec();
        data.extend([0, 0, 0, 0, 0x01, 0x13, value]);
        if more {
            data.push(0x1F);
        }
        Frame::Long { control: control::RSP_UD, address, ci: 0x72, data: &data }.emit()
    }

    const E5: [u8; 1] = [0xE5];
    const NONE: [u8; 0] = [];

    #[test]
    fn recorded_requests_are_answered_as_they_were_in_order_and_again() {
        use Way::{FromMeter, ToMeter};
        let said = |value| telegram(5, 0x1234_5678, value, value == 1);
        let other = |value| telegram(0, 0x2222_2222, value, false);
        let recorded = [
            (ToMeter, nke(5)),
            (FromMeter, E5.to_vec()),
            (ToMeter, req(5, true)),
            // In pieces, and behind an echo.
            (FromMeter, req(5, true)),
            (FromMeter, said(1)[..9].to_vec()),
            (FromMeter, said(1)[9..].to_vec()),
            (ToMeter, req(5, false)),
            (FromMeter, said(2)),
            (ToMeter, select(0x2222_2222)),
            (FromMeter, E5.to_vec()),
            (ToMeter, req(SELECTED, true)),
            (FromMeter, other(7)),
            // Silent once.
            (ToMeter, req(SELECTED, true)),
            (ToMeter, req(SELECTED, true)),
            (FromMeter, other(8)),
            (ToMeter, nke(5)),
            (FromMeter, E5.to_vec()),
            (ToMeter, req(5, true)),
            (FromMeter, said(1)),
        ];
        let mut slaves = Slaves::of(&recorded);
        assert_eq!(slaves.len(), 8);
        for _ in 0..2 {
            // In another order, and the bits of the master's own.
            assert_eq!(slaves.hear(&select(0x2222_2222)), E5);
            assert_eq!(slaves.hear(&nke(5)), E5);
            assert_eq!(slaves.hear(&req(SELECTED, false)), other(7));
            assert_eq!(slaves.hear(&req(5, false)), said(1));
            assert_eq!(slaves.hear(&req(5, false)), said(2));
            assert_eq!(slaves.hear(&req(SELECTED, false)), NONE);
            assert_eq!(slaves.hear(&req(SELECTED, true)), other(8));
            // Who begins anew hears the beginning.
            assert_eq!(slaves.hear(&nke(5)), E5);
            assert_eq!(slaves.hear(&req(5, true)), said(1));
        }
        for unknown in [nke(6), req(6, false), select(0x3333_3333), vec![0x10, 0x5B], vec![0; 600]] {
            assert_eq!(slaves.hear(&unknown), NONE, "{unknown:02X?}");
        }
        // Byte by byte, behind noise.
        let answers: Vec<u8> = select(0x2222_2222).iter().flat_map(|byte| slaves.hear(&[*byte])).collect();
        assert_eq!(answers, E5);
    }

    #[test]
    fn frames_alone_are_asked_for_by_either_address() {
        let recorded = [
            telegram(5, 0x1234_5678, 1, true),
            telegram(5, 0x1234_5678, 1, true),
            telegram(5, 0x1234_5678, 2, false),
            b"noise".to_vec(),
            telegram(5, 0x1234_5678, 3, false),
            telegram(0, 0x2222_2222, 9, false),
        ]
        .map(|bytes| (Way::FromMeter, bytes));
        let mut slaves = Slaves::of(&recorded);
        assert_eq!(slaves.len(), 3);
        for _ in 0..2 {
            assert_eq!(slaves.hear(&nke(5)), E5);
            assert_eq!(slaves.hear(&req(5, true)), telegram(5, 0x1234_5678, 1, true));
            assert_eq!(slaves.hear(&req(5, false)), telegram(5, 0x1234_5678, 2, false));
            assert_eq!(slaves.hear(&select(0x1234_5678)), E5);
            assert_eq!(slaves.hear(&req(SELECTED, true)), telegram(5, 0x1234_5678, 3, false));
            assert_eq!(slaves.hear(&select(0x22FF_2222)), E5);
            assert_eq!(slaves.hear(&req(SELECTED, true)), telegram(0, 0x2222_2222, 9, false));
            // Who is not selected any more says nothing.
            assert_eq!(slaves.hear(&nke(SELECTED)), E5);
            assert_eq!(slaves.hear(&req(SELECTED, true)), NONE);
        }
        assert_eq!(slaves.hear(&select(0x3333_3333)), NONE);
        for unasked in [nke(BROADCAST), nke(7), req(7, true)] {
            assert_eq!(slaves.hear(&unasked), NONE, "{unasked:02X?}");
        }
        // A readout that is begun anew in the middle goes on with the next.
        assert_eq!(slaves.hear(&nke(5)), E5);
        assert_eq!(slaves.hear(&req(5, true)), telegram(5, 0x1234_5678, 1, true));
        assert_eq!(slaves.hear(&nke(5)), E5);
        assert_eq!(slaves.hear(&req(5, true)), telegram(5, 0x1234_5678, 3, false));
    }
}

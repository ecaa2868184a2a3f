//! What was written, read again and compared with what was read before.

use jiff::SignedDuration;

use super::{Refused, offset, time};
use crate::{
    moment::Moment,
    reading::{Identity, Info, Reading, Report},
};

/// What may differ between a report before and after.
pub(super) struct Allowed<'a> {
    /// By how much times move.
    pub(super) shift: SignedDuration,
    /// How far from that a time may be, where its form has no seconds.
    pub(super) tolerance: SignedDuration,
    /// Texts that may be others.
    pub(super) texts: &'a dyn Fn(&str) -> bool,
    /// What is added to a reading of this report, in the steps of [`offset`].
    pub(super) added: &'a dyn Fn(&Report, &Reading) -> i128,
}

/// Whether the reports say the same, but for what is allowed.
pub(super) fn compare(old: &[Report], new: &[Report], allowed: &Allowed<'_>) -> Result<(), Refused> {
    same(old.len() == new.len(), "its meters")?;
    for (old, new) in old.iter().zip(new) {
        same(kind(&old.meter) == kind(&new.meter), "its meters")?;
        same((old.medium, &old.protocol, old.clock) == (new.medium, &new.protocol, new.clock), "its meters")?;
        same(allowed.time(old.measured_at, new.measured_at), "its times")?;
        same(old.readings.len() == new.readings.len(), "its registers")?;
        for (was, is) in old.readings.iter().zip(&new.readings) {
            let names = |reading: &Reading| (reading.register.clone(), reading.unit.clone(), reading.qualifiers);
            same(names(was) == names(is), "its registers")?;
            same(allowed.time(was.at, is.at), "its times")?;
            let scales = |reading: &Reading| {
                (reading.value.scale(), reading.raw.as_ref().map(|raw| (raw.0.scale(), raw.1.clone())))
            };
            same(scales(was) == scales(is), "its decimals")?;
            let (before, after) = (offset::amount(was), offset::amount(is));
            let is_same = match (allowed.added)(old, was) {
                // Also what has no amount: a real number of many decimals.
                0 => (was.value, &was.raw) == (is.value, &is.raw),
                added => before.and_then(|before| before.checked_add(added)) == after && after.is_some(),
            };
            same(is_same, "its values")?;
        }
        same(old.info.len() == new.info.len(), "its texts")?;
        for (was, is) in old.info.iter().zip(&new.info) {
            same(allowed.text(was, is), "its texts")?;
        }
        same(old.events.len() == new.events.len(), "its events")?;
        for (was, is) in old.events.iter().zip(&new.events) {
            same((&was.event, was.duration_s) == (&is.event, is.duration_s), "its events")?;
            same(allowed.time(was.end, is.end), "its events")?;
        }
    }
    Ok(())
}

fn same(is_same: bool, what: &'static str) -> Result<(), Refused> {
    if is_same { Ok(()) } else { Err(Refused::Differs(what)) }
}

/// Who a meter is, but for its name.
fn kind(meter: &Identity) -> Option<Option<u8>> {
    match meter {
        Identity::Own(_) => None,
        Identity::Place { channel } => Some(*channel),
    }
}

impl Allowed<'_> {
    fn time(&self, old: Option<Moment>, new: Option<Moment>) -> bool {
        match (old, new) {
            (None, None) => true,
            (Some(old), Some(new)) => old
                .moved(self.shift)
                .is_some_and(|moved| new.since(moved).unsigned_abs() <= self.tolerance.unsigned_abs()),
            _ => false,
        }
    }

    fn text(&self, (name, old): &Info, (new_name, new): &Info) -> bool {
        let moved = || {
            let moved = time::shown(old, self.shift);
            moved.is_some() && (moved == time::shown(new, SignedDuration::ZERO) || !self.tolerance.is_zero())
        };
        name == new_name && (old == new || (self.texts)(name) || (!self.shift.is_zero() && moved()))
    }
}

//! Telegrams and frames made safe to publish.
//!
//! Enters: a [`Telegram`] or an M-Bus frame, and a [`Plan`] of what to change. Leaves: the same with other names, without
//! texts, at another time, with other stands, as the plan says; with a valid CRC or checksum; or why it cannot be given
//! away ([`Refused`]). Everything else stays byte for byte: order, line ends, digits, decimals.
//!
//! What is changed:
//!
//! | what | becomes |
//! |---|---|
//! | P1 identifiers (`p1::table`: equipment, serial numbers, logical device, address), EAN | the same form with other digits |
//! | numbers of five and more digits in the header | other digits |
//! | P1 texts (`0-0:96.13.x`) | empty |
//! | P1 lines that nobody explains | left out, unless they hold nothing, or are asked to stay |
//! | M-Bus: number in the header, in selections with wildcards, fabrication number, enhanced identification, numbers of customer and location | other digits |
//! | M-Bus: texts, keys, access codes, passwords | blanks, zeros |
//! | M-Bus: data of the manufacturer's own, records that nobody explains | zeros of the same length, unless they are asked to stay |
//!
//! Versions, states, units, makers and media stay: they are what a publication is for.
//!
//! What is written is read again, and compared: the same registers, units and qualifiers, the same values and times but for
//! what the plan adds, the same count of whatever else. And it is searched for the names that were: see [`Refused::Leak`].
//!
//! Not supported: offsets for real numbers; encrypted M-Bus telegrams, which are refused.

mod check;
pub mod cut;
mod mbus;
mod names;
mod offset;
mod p1;
mod serials;
mod time;

use jiff::{SignedDuration, Timestamp};

pub use names::Secret;
pub use offset::{Offsets, Survey};
pub use serials::Serials;

use crate::{
    mbus::Frame,
    p1::{Dialect, Telegram},
};

/// What to change.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// New names from this secret; None: the names stay, and texts, and what nobody explains.
    pub names: Option<Secret>,
    /// The names that were in everything that is given away together: none of them may be found in any telegram.
    pub serials: Serials,
    /// Whether P1 lines and M-Bus data that nobody explains stay, as long as no name is found in them.
    pub keep_unknown: bool,
    /// By how much all times move. Whole days keep days without a time exact.
    pub shift: SignedDuration,
    /// What is added to the counters.
    pub offsets: Option<Offsets>,
}

/// Changes telegrams and frames by a [`Plan`].
///
/// With nothing but a shift, for playing a capture as if it were of today:
///
/// ```
/// use meterkast::{p1::{Framer, Telegram, Writer}, redact::{Plan, Rewriter}};
///
/// let sent = Writer::new("XYZ5 example").line("1-3:0.2.8(50)").line("0-0:1.0.0(261025023000S)").finish(true);
/// let mut framer = Framer::new();
/// framer.push(&sent);
/// let telegram = Telegram::check(framer.poll().unwrap()).unwrap();
/// let rewriter = Rewriter::new(Plan { shift: jiff::SignedDuration::from_hours(1), ..Plan::default() });
/// let new = rewriter.telegram(&telegram, None, "p1").unwrap();
/// assert_eq!(new.bytes, Writer::new("XYZ5 example").line("1-3:0.2.8(50)").line("0-0:1.0.0(261025023000W)").finish(true));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Rewriter {
    plan: Plan,
}

/// A telegram or frame with the changes of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// A P1 telegram from its `/` to the line end behind its CRC, or a frame from start to stop.
    pub bytes: Vec<u8>,
    /// How many lines of P1 were left out because nobody explains them.
    pub lines_left_out: u64,
    /// How many stretches of M-Bus data were blanked for the same reason.
    pub blanked: u64,
}

/// Why a telegram or frame was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// An answer that cannot be read.
    #[error(transparent)]
    Answer(#[from] crate::mbus::Reason),
    /// A frame whose data means nothing that is known, so nobody can say what it names.
    #[error("control information {0:02X} with data that nobody explains")]
    Data(u8),
    /// A selection that gives digits of a number, but not its first ones.
    #[error("selects by digits in the middle of a number: no new number has the like")]
    Selection,
    /// A time leaves the years that its form can show.
    #[error("a time cannot be written in its form once it is shifted; shift by less")]
    Time,
    /// A counter has no offset, or no room for it.
    #[error(
        "a counter cannot take an offset: a real number, or one that the files did not hold when the offsets were chosen"
    )]
    Offset,
    /// Read again, the new bytes say something else.
    #[error("read again, {0} would not be what they were")]
    Differs(&'static str),
    /// Digits of a name that was are still there.
    #[error("digits of an original identifier would remain; if that is chance, another seed helps")]
    Leak,
}

impl Refused {
    /// A short name, for counters.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Answer(reason) => reason.kind(),
            Self::Data(_) => "data",
            Self::Selection => "selection",
            Self::Time => "time",
            Self::Offset => "offset",
            Self::Differs(_) => "differs",
            Self::Leak => "leak",
        }
    }
}

impl From<time::NoRoom> for Refused {
    fn from(_: time::NoRoom) -> Self {
        Self::Time
    }
}

impl Rewriter {
    /// By this plan.
    pub fn new(plan: Plan) -> Self {
        Self { plan }
    }

    /// A P1 telegram. `port`: a name for the place where it was read; meters that do not name themselves are told apart by it.
    pub fn telegram(&self, telegram: &Telegram<'_>, dialect: Option<Dialect>, port: &str) -> Result<Written, Refused> {
        p1::rewrite(&self.plan, telegram, dialect, port)
    }

    /// An M-Bus frame, of a master or of a meter. `port`: as above.
    pub fn frame(&self, frame: &Frame<'_>, port: &str) -> Result<Written, Refused> {
        mbus::rewrite(&self.plan, frame, port)
    }

    /// What a wall clock showed beside the bytes. None beyond the calendar.
    pub fn wall_clock(&self, at: Timestamp) -> Option<Timestamp> {
        at.checked_add(self.plan.shift).ok()
    }

    /// A name that people gave, such as that of a port: with other digits where it holds a name that was.
    pub fn label(&self, label: &str) -> String {
        match &self.plan.names {
            Some(secret) if self.plan.serials.are_in_label(label.as_bytes()) => {
                String::from_utf8_lossy(&secret.identifier(label.as_bytes())).into_owned()
            }
            _ => label.to_owned(),
        }
    }
}

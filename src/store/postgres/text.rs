//! Texts as the server keeps them: it takes every character but NUL.
//!
//! Enters: a text. Leaves: one without NUL, from which the first can be made again: NUL as ␀, ␀ itself as ␛␀, ␛ as ␛␛.

use std::borrow::Cow;

const NUL: char = '\u{2400}';
const ESCAPE: char = '\u{241b}';

/// A text that the server takes.
pub(super) fn keep(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', NUL, ESCAPE]) {
        return text.into();
    }
    let mut kept = String::with_capacity(text.len().saturating_add(8));
    for letter in text.chars() {
        match letter {
            '\0' => kept.push(NUL),
            NUL | ESCAPE => kept.extend([ESCAPE, letter]),
            letter => kept.push(letter),
        }
    }
    kept.into()
}

/// The text that was kept so.
pub(super) fn restore(kept: String) -> String {
    if !kept.contains([NUL, ESCAPE]) {
        return kept;
    }
    let mut letters = kept.chars();
    let mut text = String::with_capacity(kept.len());
    while let Some(letter) = letters.next() {
        match letter {
            NUL => text.push('\0'),
            ESCAPE => text.extend(letters.next()),
            letter => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_comes_back_and_none_has_a_nul(text in "[\0\u{2400}\u{241b}a]{0,8}|\\PC{0,8}") {
            let kept = keep(&text).into_owned();
            prop_assert!(!kept.contains('\0'));
            prop_assert_eq!(restore(kept), text);
        }

        // By their order rows are taken; it need not be that of the texts, but must be one.
        #[test]
        fn two_texts_stay_two(one in "[\0\u{2400}\u{241b}a]{0,6}", other in "[\0\u{2400}\u{241b}a]{0,6}") {
            prop_assert_eq!(one == other, keep(&one) == keep(&other));
        }
    }
}

//! Which language a text is in, as far as its letters and commonest words show: enough to notice that a memo is in another
//! language than its question. A short or mixed text has no language here.

/// A language by its primary BCP 47 subtag, with words that it uses all the time and the others do not.
const WORDS: [(&str, &str); 6] = [
    ("en", "the and of to is should we our or for with this that it are be not which will have"),
    ("de", "der die das und ist wir nicht ein eine für mit auf den dem sollen oder zu werden sich auch"),
    ("fr", "le la les et est nous des une pour dans du pas que qui sur avec ou faut il au"),
    ("es", "el la los las y es de que en un una para con por no se debemos nuestro o del"),
    ("it", "il lo gli e è di che un una per con non si dobbiamo nostro o della sono nel alla"),
    ("pt", "o os as e é de que um uma para com por não se devemos nosso ou da em ao"),
];

/// How many of the commonest words a text must have before its language counts as known.
const LEAST_WORDS: usize = 3;

pub(super) fn detect(text: &str) -> Option<&'static str> {
    let mut letters = [("zh", 0_usize), ("ja", 0), ("ko", 0), ("ru", 0), ("ar", 0), ("latin", 0)];
    for c in text.chars() {
        let (place, worth) = match c {
            // A Chinese character stands for about as much as three letters.
            '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}' => (0, 3),
            '\u{3040}'..='\u{30ff}' => (1, 2),
            '\u{ac00}'..='\u{d7a3}' => (2, 3),
            '\u{400}'..='\u{52f}' => (3, 1),
            '\u{600}'..='\u{6ff}' => (4, 1),
            c if c.is_alphabetic() => (5, 1),
            _ => continue,
        };
        letters[place].1 += worth;
    }
    // Japanese is written with Chinese characters too.
    if letters[1].1 * 5 > letters[0].1 {
        letters[1].1 += std::mem::take(&mut letters[0].1);
    }
    let all: usize = letters.iter().map(|(_, count)| count).sum();
    let (script, count) = letters.into_iter().max_by_key(|(_, count)| *count)?;
    if count * 3 < all * 2 || count == 0 {
        None
    } else if script == "latin" {
        of_latin(text)
    } else {
        Some(script)
    }
}

fn of_latin(text: &str) -> Option<&'static str> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    let mut found = WORDS.map(|(language, _)| (0, language));
    for word in words {
        for ((count, _), (_, common)) in found.iter_mut().zip(WORDS) {
            *count += usize::from(common.split(' ').any(|known| known == word));
        }
    }
    found.sort_unstable();
    let [.., (second, _), (first, language)] = found;
    (first >= LEAST_WORDS && first > second + second / 2).then_some(language)
}

#[cfg(test)]
mod tests {
    use super::detect;

    #[test]
    fn a_language_is_known_by_its_letters_or_its_commonest_words() {
        for (text, language) in [
            ("Should we move our warehouse to Rotterdam, and is that the right time?", Some("en")),
            ("Sollen wir im Werk Ulm auf die Vier-Tage-Woche umstellen, und ist das bezahlbar?", Some("de")),
            ("Faut-il que nous ouvrions une usine dans le sud pour les clients?", Some("fr")),
            ("我们应该收购 Acme 吗？", Some("zh")),
            ("私たちは新しい工場を建てるべきですか", Some("ja")),
            ("우리는 공장을 지어야 합니까", Some("ko")),
            ("Стоит ли нам открыть завод?", Some("ru")),
            ("Buy or build?", None),
            ("V6 ERP?", None),
            ("Should we 收购 Acme 还是自建 a team in the US?", None),
            ("", None),
        ] {
            assert_eq!(detect(text), language, "{text}");
        }
    }
}

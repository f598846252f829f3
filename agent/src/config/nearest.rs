//! The nearest word: what someone who mistyped a key probably meant.

/// Edits beyond which two words have nothing to do with each other.
const EDITS_MAX: usize = 3;

/// The word of `words` that is fewest edits away from `wrong`, if any is near.
pub(crate) fn nearest<'a>(wrong: &str, words: &[&'a str]) -> Option<&'a str> {
    let edits_max = EDITS_MAX.min(wrong.chars().count() / 2 + 1);
    let near = words.iter().map(|word| (distance(wrong, word), *word)).min()?;
    (near.0 <= edits_max).then_some(near.1)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            rows[i][j] = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                rows[i][j] = rows[i][j].min(rows[i - 2][j - 2] + 1);
            }
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        for (a, b, edits) in [("", "", 0), ("abc", "", 3), ("nmae", "name", 1), ("listen", "lisen", 1), ("a", "b", 1)] {
            assert_eq!((distance(a, b), distance(b, a)), (edits, edits), "{a} {b}");
        }
    }

    #[test]
    fn finds_near_words_only() {
        let words = ["name", "listen", "labels", "limits"];
        assert_eq!(nearest("nmae", &words), Some("name"));
        assert_eq!(nearest("label", &words), Some("labels"));
        assert_eq!(nearest("frobnicate", &words), None);
        assert_eq!(nearest("x", &[]), None);
    }
}

//! Puts statements in SQLite's words into Postgres's. Never knows what one is about.

/// A statement for Postgres: `?1` becomes `$1`, the column `user` is quoted, since it is a word of the language, a list
/// of numbers is taken apart by Postgres's function, and what tells SQLite which index to use goes.
pub(super) fn translated(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 16);
    let mut rest = sql;
    // Text between quotation marks stays.
    while let Some(at) = rest.find('\'') {
        let end = rest[at + 1..].find('\'').map_or(rest.len(), |end| at + 1 + end + 1);
        words(&rest[..at], &mut out);
        out.push_str(&rest[at..end]);
        rest = &rest[end..];
    }
    words(rest, &mut out);
    out
}

fn words(sql: &str, out: &mut String) {
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len()).max(first.len_utf8());
        let (word, after) = rest.split_at(length);
        rest = after;
        match word {
            "?" => out.push('$'),
            "user" if !out.ends_with('.') => out.push_str("\"user\""),
            "INDEXED" => {
                let name = after.trim_start().trim_start_matches("BY").trim_start();
                rest = name.trim_start_matches(is_word);
            }
            "json_each" => {
                let end = after.find(')').map_or(after.len(), |end| end + 1);
                let given = after[..end].trim_matches(['(', ')']).replace('?', "$");
                out.push_str("(SELECT CAST(each_of.value AS BIGINT) AS value FROM json_array_elements_text(CAST(CAST(");
                out.push_str(&given);
                out.push_str(" AS TEXT) AS JSON)) AS each_of(value)) AS listed");
                rest = &after[end..];
            }
            word => out.push_str(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_put_into_the_words_of_postgres_and_text_stays() {
        let cases = [
            ("SELECT a FROM t WHERE x = ?1 AND y > ?12", "SELECT a FROM t WHERE x = $1 AND y > $12"),
            ("SELECT user, f.user FROM f", "SELECT \"user\", f.user FROM f"),
            (
                "SET left_out = 'user ?1 INDEXED' WHERE user = ?1",
                "SET left_out = 'user ?1 INDEXED' WHERE \"user\" = $1",
            ),
            ("FROM f INDEXED BY f_of_user\n WHERE users", "FROM f \n WHERE users"),
            ("SELECT 'é' || ?1", "SELECT 'é' || $1"),
        ];
        for (sqlite, postgres) in cases {
            assert_eq!(translated(sqlite), postgres);
        }
        let list = translated("x IN (SELECT value FROM json_each(?2)) AND y = ?1");
        assert!(list.contains("CAST($2 AS TEXT)") && list.ends_with("AS listed) AND y = $1"), "{list}");
    }
}

//! What a path becomes on its way upstream.

use super::place::{PathPattern, Segment, parts};

/// What stands in the place of the part of the path that the route names; what lies below stays
/// as it is, and so does the query. `"/"` strips a prefix, `"/v2"` replaces it, and
/// `"/accounts/{id}"` puts segments elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// The request's segment at this place.
    Segment(usize),
}

/// Why a text is no rewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RewriteFault {
    /// It is no path in normal form.
    NotAPath,
    /// The route's path has no segment of this name.
    Unknown(String),
}

impl Rewrite {
    /// Reads what the paths of `from` become.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, from: &PathPattern) -> Result<Self, RewriteFault> {
        let to = PathPattern::parse(text, false).map_err(|_| RewriteFault::NotAPath)?;
        let piece = |segment: Segment| match segment {
            Segment::Literal(text) => Ok(Piece::Literal(text)),
            Segment::Any(name) => {
                let named = |own: &Segment| matches!(own, Segment::Any(own) if *own == name);
                let at = from.segments.iter().position(named);
                at.map(Piece::Segment).ok_or(RewriteFault::Unknown(name))
            }
        };
        to.segments.into_iter().map(piece).collect::<Result<_, _>>().map(Self)
    }

    /// What a path in normal form, which `from` covers, becomes; in normal form again.
    #[must_use]
    pub fn apply(&self, from: &PathPattern, path: &str) -> String {
        let asked = || parts(path.strip_prefix('/').unwrap_or(path));
        let put = self.0.iter().filter_map(|piece| match piece {
            Piece::Literal(text) => Some(text.as_str()),
            Piece::Segment(at) => asked().nth(*at),
        });
        let mut out = String::with_capacity(path.len());
        for segment in put.chain(asked().skip(from.segments.len())) {
            out.push('/');
            out.push_str(segment);
        }
        if out.is_empty() || path.len() > 1 && path.ends_with('/') {
            out.push('/');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::target::Target;

    fn rewritten(from: &str, to: &str, path: &str) -> String {
        let from = PathPattern::parse(from, false).unwrap();
        Rewrite::parse(to, &from).unwrap().apply(&from, path)
    }

    #[test]
    fn a_path_is_stripped_replaced_or_rearranged() {
        for (from, to, path, expected) in [
            ("/v1", "/", "/v1/a/b", "/a/b"),
            ("/v1", "/", "/v1", "/"),
            ("/v1", "/", "/v1/", "/"),
            ("/v1", "/", "/v1/a/", "/a/"),
            ("/v1", "/api/v2", "/v1/a", "/api/v2/a"),
            ("/", "/api", "/", "/api"),
            ("/", "/api", "/a/", "/api/a/"),
            ("/users/{id}/orders", "/orders/of/{id}", "/users/7/orders/9", "/orders/of/7/9"),
            ("/{a}/{b}", "/{b}/{a}", "/x/y/z", "/y/x/z"),
            ("/{a}", "/", "/x", "/"),
        ] {
            assert_eq!(rewritten(from, to, path), expected, "{from} -> {to}: {path}");
        }
    }

    #[test]
    fn a_rewrite_names_what_is_there() {
        let from = PathPattern::parse("/users/{id}", false).unwrap();
        let unknown = RewriteFault::Unknown("name".into());
        assert_eq!(Rewrite::parse("/{name}", &from), Err(unknown));
        assert_eq!(Rewrite::parse("/a/../b", &from), Err(RewriteFault::NotAPath));
        assert_eq!(Rewrite::parse("v1", &from), Err(RewriteFault::NotAPath));
    }

    proptest! {
        #[test]
        fn a_rewritten_path_is_in_normal_form(
            from in "(/[ab]){0,2}", to in "(/[cd]){0,3}", path in "(/[a-c.%2C]{1,3}){0,4}/?",
        ) {
            let from = if from.is_empty() { "/".to_owned() } else { from };
            let to = if to.is_empty() { "/".to_owned() } else { to };
            if let Ok(target) = Target::parse(&format!("{from}{path}").replace("//", "/"), 1000) {
                let pattern = PathPattern::parse(&from, false).unwrap();
                prop_assume!(pattern.covers(&target.path));
                let out = rewritten(&from, &to, &target.path);
                prop_assert_eq!(Target::parse(&out, 1000).map(|t| t.path), Ok(out));
            }
        }
    }
}

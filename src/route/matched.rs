//! The form of a canonical path that is compared with prefixes and patterns.
//!
//! Many servers drop the parameters of a segment (`;…`, RFC 3986 section 3.3) before they choose what serves a path, so
//! `/admin;x` and `/;/admin` are `/admin` to them. Some also ignore case, and trailing dots and spaces. A route and a
//! permitted path must mean the same to the gateway. The path that is forwarded keeps all of these.

use std::borrow::Cow;

use memchr::{memchr_iter, memchr2, memmem};

/// `;` as an escape, in the canonical case.
const ENCODED_SEMICOLON: &str = "%3B";

/// The form of the canonical `path` that is compared: segments without parameters, none of them empty. `fold`: in lower
/// case too, without trailing dots and spaces.
pub fn matched(path: &str, fold: bool) -> Cow<'_, str> {
    if !fold && !has_parameters(path) {
        return Cow::Borrowed(path);
    }
    let mut form = String::with_capacity(path.len());
    let segments = path.strip_prefix('/').unwrap_or(path).split('/');
    for name in segments.map(|segment| name(segment, fold)).filter(|name| !name.is_empty()) {
        form.push('/');
        form.push_str(name);
    }
    if form.is_empty() || ends_with_slash(path, fold) {
        form.push('/');
    }
    if fold {
        form.make_ascii_lowercase();
    }
    Cow::Owned(form)
}

/// Whether a segment of `path` has parameters.
pub fn has_parameters(path: &str) -> bool {
    let bytes = path.as_bytes();
    memchr2(b';', b'%', bytes).is_some_and(|at| {
        bytes.get(at..).is_some_and(|rest| {
            memchr::memchr(b';', rest).is_some()
                || memmem::find(rest, ENCODED_SEMICOLON.as_bytes()).is_some()
        })
    })
}

/// The rest of the canonical `path` after as many segments as `prefix` has; `path` begins with `prefix` in the form that
/// is compared, so segments that are empty in that form do not count. The rest is empty or begins with `/`.
pub fn without_prefix<'p>(path: &'p str, prefix: &str, fold: bool) -> &'p str {
    let mut left = prefix.split('/').filter(|segment| !name(segment, fold).is_empty()).count();
    let mut rest = path;
    while left > 0
        && let Some(after) = rest.strip_prefix('/')
    {
        let (segment, next) = after.split_at(after.find('/').unwrap_or(after.len()));
        left -= usize::from(!name(segment, fold).is_empty());
        rest = next;
    }
    rest
}

/// A segment without its parameters. `fold`: as a careless server reads it, up to an encoded `?`, `#` or control character,
/// without spaces around it and dots after it.
fn name(segment: &str, fold: bool) -> &str {
    let name = segment.split(';').next().unwrap_or_default();
    let mut name = name.split(ENCODED_SEMICOLON).next().unwrap_or_default();
    if !fold {
        return name;
    }
    let ends = |at: &usize| {
        let digits =
            name.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        digits.is_some_and(|byte| byte.is_ascii_control() || matches!(byte, b'?' | b'#'))
    };
    let end = memchr_iter(b'%', name.as_bytes()).find(ends);
    name = name.get(..end.unwrap_or(name.len())).unwrap_or_default();
    while let Some(shorter) = name.strip_prefix("%20") {
        name = shorter;
    }
    while let Some(shorter) = name.strip_suffix('.').or_else(|| name.strip_suffix("%20")) {
        name = shorter;
    }
    name
}

/// Whether the last segment is empty in the form that is compared.
fn ends_with_slash(path: &str, fold: bool) -> bool {
    path.rsplit('/').next().is_some_and(|last| name(last, fold).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_do_not_take_part() {
        for (path, form) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/a;x", "/a"),
            ("/a;x=1;y=2/b;z", "/a/b"),
            ("/;/admin", "/admin"),
            ("/;x/;y/admin/;z", "/admin/"),
            ("/admin%3Bx", "/admin"),
            ("/admin%3Bx/y", "/admin/y"),
            ("/;", "/"),
            ("/a%20b", "/a%20b"),
            ("/A.", "/A."),
        ] {
            assert_eq!(matched(path, false), form, "{path}");
        }
    }

    #[test]
    fn folding_ignores_case_and_trailing_dots_and_spaces() {
        for (path, form) in [
            ("/Admin", "/admin"),
            ("/admin.", "/admin"),
            ("/admin%20", "/admin"),
            ("/Admin.%20.;x/Y", "/admin/y"),
            ("/a.b%20c", "/a.b%20c"),
            ("/...", "/"),
            ("/admin%3Fx", "/admin"),
            ("/admin%23/x", "/admin/x"),
            ("/%20Admin%09y/", "/admin/"),
            ("/a/", "/a/"),
        ] {
            assert_eq!(matched(path, true), form, "{path}");
        }
    }

    #[test]
    fn the_prefix_is_cut_off_where_it_matched() {
        for (path, prefix, fold, rest) in [
            ("/strip/a", "/strip", false, "/a"),
            ("/strip", "/strip", false, ""),
            ("/strip/", "/strip", false, "/"),
            ("/strip;x/a;y", "/strip", false, "/a;y"),
            ("/;/strip/a", "/strip", false, "/a"),
            ("/a;1/b;2/c;3", "/a/b", false, "/c;3"),
            ("/STRIP./a", "/strip", true, "/a"),
            ("/a", "/", false, "/a"),
            ("/x/secret", "/.../x", true, "/secret"),
            ("/.../x/secret", "/.../x", true, "/secret"),
            ("/.../x/secret", "/.../x", false, "/secret"),
            ("/X%20/.../secret", "/x/%20", true, "/.../secret"),
        ] {
            assert_eq!(without_prefix(path, prefix, fold), rest, "{path} {prefix}");
        }
    }

    #[test]
    fn the_form_is_a_fixed_point_without_parameters() {
        let mut random = fastrand::Rng::with_seed(5);
        let parts = ["/", ";", "%3B", "a", "B", ".", "%20", "x=1"];
        for _ in 0..50_000 {
            let path: String =
                (0..random.usize(1..9)).map(|_| parts[random.usize(..parts.len())]).collect();
            let path = format!("/{path}");
            for fold in [false, true] {
                let form = matched(&path, fold).into_owned();
                assert!(form.starts_with('/') && !has_parameters(&form), "{path} became {form}");
                if has_parameters(&path) || fold {
                    assert!(!form.contains("//"), "{path} became {form}");
                }
                assert_eq!(matched(&form, fold), form, "{path}");
                let rest = without_prefix(&path, &form, fold);
                assert_eq!(
                    matched(rest, fold).trim_matches('/'),
                    "",
                    "{path} without {form}: {rest}"
                );
            }
        }
    }
}

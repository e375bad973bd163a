//! The codec against tables, models and nonsense.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::head::Bounds;
use crate::lines::Lines;

const BOUNDS: Bounds = Bounds { uri_bytes_max: 200, headers_max: 8, header_bytes_max: 400 };

fn framing_of(fields: &str) -> Result<Framing, Fault> {
    let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let mut reader = RequestReader::default();
    let head = reader.read(text.as_bytes(), &BOUNDS)?.expect("complete");
    of_request(head.first.version, text.as_bytes(), reader.fields())
}

fn answer(text: &str, to_head: bool) -> Result<(u16, Framing), Fault> {
    let mut reader = ResponseReader::default();
    let head = reader.read(text.as_bytes(), &BOUNDS)?.ok_or(Fault::Malformed)?;
    let StatusLine { version, status } = head.first;
    let framing = of_response(version, status, to_head, text.as_bytes(), reader.fields())?;
    Ok((status, framing))
}

/// Decodes a whole body, handed over in parts of so many bytes.
fn unchunk(text: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, Fault> {
    let (mut chunks, mut buffer, mut fed) = (Chunks::default(), Vec::new(), 0);
    let (mut body, mut done) = (Vec::new(), 0);
    loop {
        match chunks.read(&buffer, &BOUNDS)? {
            Chunk::More { consumed } => {
                buffer.drain(..consumed);
                done += consumed;
                if fed == text.len() {
                    return Ok(None);
                }
                let next = (fed + step).min(text.len());
                buffer.extend_from_slice(&text[fed..next]);
                fed = next;
            }
            Chunk::Data { skipped, length } => {
                body.extend_from_slice(&buffer[skipped..skipped + length]);
                buffer.drain(..skipped + length);
                done += skipped + length;
            }
            Chunk::End { skipped, length } => return Ok(Some((body, done + skipped + length))),
        }
    }
}

#[test]
fn a_head_is_read_as_it_comes() {
    let text = b"\r\nGET /a?b HTTP/1.1\r\nHost: a.example\r\nX: \t v w \r\nY:\r\n\r\nrest";
    let mut reader = RequestReader::default();
    for end in 0..text.len() - 5 {
        assert_eq!(reader.read(&text[..end], &BOUNDS), Ok(None), "{end}");
    }
    let head = reader.read(text, &BOUNDS).unwrap().unwrap();
    assert_eq!(head.length, text.len() - 4);
    assert_eq!(head.first.method.of(text), b"GET");
    assert_eq!(head.first.target.of(text), b"/a?b");
    let map = headers(&Bytes::copy_from_slice(text), reader.fields()).unwrap();
    assert_eq!(
        (&map["host"], &map["x"], &map["y"]),
        (&"a.example".parse().unwrap(), &"v w".parse().unwrap(), &"".parse().unwrap())
    );
    reader.clear();
    assert_eq!(reader.read(b"GET", &BOUNDS), Ok(None));
}

#[test]
fn a_fault_is_told_before_the_line_is_complete() {
    for text in [
        "\n",
        "\r\n\r\n",
        " ",
        "\x16\x03\x01",
        "GET / HTTP/1.1\rX",
        "GET /\0",
        "GET / HTTP/1.1\r\nA: \x01",
    ] {
        let read = RequestReader::default().read(text.as_bytes(), &BOUNDS);
        assert_eq!(read, Err(Fault::Malformed), "{text:?}");
    }
    assert_eq!(ResponseReader::default().read(b"\x16\x03", &BOUNDS), Err(Fault::Malformed));
}

#[test]
fn bounds_are_kept() {
    let read = |text: &str| RequestReader::default().read(text.as_bytes(), &BOUNDS);
    assert_eq!(read(&format!("GET /{}", "a".repeat(300))), Err(Fault::LineTooLong));
    assert_eq!(read(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(300))), Err(Fault::LineTooLong));
    let long = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(400));
    assert_eq!(read(&long), Err(Fault::FieldsTooLarge));
    let many = format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(9));
    assert_eq!(read(&many), Err(Fault::FieldsTooLarge));
    let fits = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(8));
    assert!(read(&fits).unwrap().is_some());
}

#[test]
fn a_length_is_said_once() {
    for (fields, expected) in [
        ("", Ok(Framing::Empty)),
        ("Content-Length: 0\r\n", Ok(Framing::Empty)),
        ("Content-Length: 12\r\n", Ok(Framing::Length(12))),
        ("content-length:12 \r\n", Ok(Framing::Length(12))),
        ("Content-Length: 999999999999999999\r\n", Ok(Framing::Length(999_999_999_999_999_999))),
        ("Content-Length: 9999999999999999999\r\n", Err(Fault::Malformed)),
        ("Content-Length: 012\r\n", Err(Fault::Malformed)),
        ("Content-Length:\t12\r\n", Err(Fault::Malformed)),
        ("Content-Length: 1\r\nContent-Length: 1\r\n", Err(Fault::Malformed)),
        ("Transfer-Encoding: Chunked\r\n", Ok(Framing::Chunked)),
        ("Transfer-Encoding: chunked, chunked\r\n", Err(Fault::Malformed)),
        ("Transfer-Encoding: chunked\t\r\n", Err(Fault::Malformed)),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", Err(Fault::Malformed)),
    ] {
        assert_eq!(framing_of(fields), expected, "{fields:?}");
    }
}

#[test]
fn an_answer_is_read_as_strictly() {
    for (text, to_head, expected) in [
        ("HTTP/1.1 200 OK\r\n\r\n", false, Ok((200, Framing::Close))),
        ("HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n", false, Ok((200, Framing::Length(3)))),
        ("HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n", true, Ok((200, Framing::Empty))),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n",
            false,
            Ok((304, Framing::Empty)),
        ),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", false, Ok((204, Framing::Empty))),
        ("HTTP/1.1 100 Continue\r\n\r\n", false, Ok((100, Framing::Empty))),
        ("HTTP/1.1 100 Continue\r\nContent-Length: 3\r\n\r\n", false, Err(Fault::Malformed)),
        ("HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", false, Err(Fault::Malformed)),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, Err(Fault::Malformed)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\n", false, Err(Fault::Malformed)),
        ("HTTP/1.1 099 OK\r\n\r\n", false, Err(Fault::Malformed)),
        ("HTTP/1.1 20 OK\r\n\r\n", false, Err(Fault::Malformed)),
        ("HTTP/1.1 2000\r\n\r\n", false, Err(Fault::Malformed)),
        ("HTTP/2 200 OK\r\n\r\n", false, Err(Fault::Malformed)),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", false, Err(Fault::Malformed)),
        ("HTTP/1.1 200 OK\nA: b\r\n\r\n", false, Err(Fault::Malformed)),
    ] {
        assert_eq!(answer(text, to_head), expected, "{text:?}");
    }
}

#[test]
fn chunks_are_read_strictly() {
    for (text, expected) in [
        ("3\r\nabc\r\n0\r\n\r\n", Ok(Some("abc"))),
        ("A;x=y\r\n0123456789\r\n000\r\nT: v\r\n\r\n", Ok(Some("0123456789"))),
        ("3\r\nabc\r\n", Ok(None)),
        ("3\r\nabcd\r\n", Err(Fault::Malformed)),
        ("3\nabc\r\n", Err(Fault::Malformed)),
        ("3\r\nabc\n0\r\n\r\n", Err(Fault::Malformed)),
        ("3 \r\nabc\r\n", Err(Fault::Malformed)),
        ("3 ;a\r\nabc\r\n", Err(Fault::Malformed)),
        ("0x3\r\nabc\r\n", Err(Fault::Malformed)),
        ("-3\r\nabc\r\n", Err(Fault::Malformed)),
        ("\r\n", Err(Fault::Malformed)),
        ("3;a\nb\r\nabc\r\n", Err(Fault::Malformed)),
        ("00000000000000003\r\nabc\r\n", Err(Fault::Malformed)),
        ("0\r\nContent-Length: 3\r\n\r\n", Err(Fault::Malformed)),
        ("0\r\nA : b\r\n\r\n", Err(Fault::Malformed)),
        ("0\r\n\n", Err(Fault::Malformed)),
    ] {
        for step in [1, 2, 100] {
            let read = unchunk(text.as_bytes(), step);
            let read = read.map(|r| r.map(|(body, _)| String::from_utf8(body).unwrap()));
            let read = read.as_ref().map(Option::as_deref).map_err(|f| *f);
            assert_eq!(read, expected, "{text:?} by {step}");
        }
    }
    let long = format!("1;{}\r\na\r\n", "x".repeat(5000));
    assert_eq!(unchunk(long.as_bytes(), 100), Err(Fault::Malformed));
    let every = format!("1;{}\r\na\r\n", "x".repeat(500)).repeat(10);
    assert_eq!(unchunk(every.as_bytes(), 100), Err(Fault::Malformed), "they add up");
}

#[test]
fn heads_are_written_with_one_framing() {
    let map = [("host", "a"), ("content-length", "9"), ("transfer-encoding", "x"), ("b", "c")];
    let map: http::HeaderMap = map
        .map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), v.parse().unwrap()))
        .into_iter()
        .collect();
    let written = |method, framing| {
        let mut out = Vec::new();
        request(
            &mut out,
            &method,
            "/x",
            Fields { lines: &Lines::default(), map: &map, framing, connection: None },
        );
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        written(http::Method::GET, Framing::Empty),
        "GET /x HTTP/1.1\r\nhost: a\r\nb: c\r\n\r\n"
    );
    assert!(written(http::Method::POST, Framing::Empty).contains("content-length: 0\r\n"));
    assert!(written(http::Method::POST, Framing::Length(7)).contains("content-length: 7\r\n"));
    let chunked = written(http::Method::POST, Framing::Chunked);
    assert!(chunked.contains("transfer-encoding: chunked\r\n") && !chunked.contains("length"));
    let fields = Fields {
        lines: &Lines::default(),
        map: &map,
        framing: Framing::Chunked,
        connection: Some("close"),
    };
    let mut out = Vec::new();
    response(&mut out, http::StatusCode::OK, fields, true);
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("content-length: 9\r\n") && !text.contains("chunked"), "{text}");
    assert!(text.ends_with("connection: close\r\n\r\n"), "{text}");
}

proptest! {
    /// What is written is read back as the same body, however it is cut.
    #[test]
    fn chunks_come_back(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6), step in 1_usize..50) {
        let mut text = Vec::new();
        for part in &parts {
            open_chunk(&mut text, part.len());
            text.extend_from_slice(part);
            text.extend_from_slice(b"\r\n");
        }
        last_chunk(&mut text, None);
        let length = text.len();
        text.extend_from_slice(b"GET");
        prop_assert_eq!(unchunk(&text, step), Ok(Some((parts.concat(), length))));
    }

    /// A head read in one piece and one read byte by byte are the same, or the same fault.
    #[test]
    fn the_cut_does_not_matter(text in "(GET|P\u{7f}) /[a ]{0,3} HTTP/1.[01](\r\n|\n|\r)([AB:\t\r\n x]{0,6}(\r\n)?){0,4}\r\n\r\n") {
        let bytes = text.as_bytes();
        let whole = RequestReader::default().read(bytes, &BOUNDS);
        let mut reader = RequestReader::default();
        let mut slow = Ok(None);
        for end in 1..=bytes.len() {
            slow = reader.read(&bytes[..end], &BOUNDS);
            if slow != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(whole, slow);
    }

    /// A head that is read and written again is read as the same.
    #[test]
    fn a_head_comes_back(names in proptest::collection::vec("[a-z-]{1,8}", 0..6), value in "[!-~][ -~]{0,20}[!-~]") {
        let mut text = b"GET /x HTTP/1.1\r\n".to_vec();
        for name in &names {
            text.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
        }
        text.extend_from_slice(b"\r\n");
        let read = |text: &[u8]| {
            let mut reader = RequestReader::default();
            let head = reader.read(text, &BOUNDS).unwrap().unwrap();
            prop_assert_eq!(head.length, text.len());
            Ok(headers(&Bytes::copy_from_slice(text), reader.fields()).unwrap())
        };
        let map = read(&text)?;
        let mut out = Vec::new();
        let fields = Fields { lines: &Lines::default(), map: &map, framing: Framing::Close, connection: None };
        request(&mut out, &http::Method::GET, "/x", fields);
        let mut expected = map.clone();
        for gone in ["content-length", "transfer-encoding", "connection"] {
            expected.remove(gone);
        }
        prop_assert_eq!(read(&out)?, expected);
    }

    #[test]
    fn no_bytes_break_it(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b':'), Just(b'1')], 0..80), step in 1_usize..9) {
        let _ = RequestReader::default().read(&bytes, &BOUNDS);
        let _ = ResponseReader::default().read(&bytes, &BOUNDS);
        let _ = unchunk(&bytes, step);
    }
}

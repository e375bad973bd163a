//! Hexadecimal digits. Ours are lower-case.

/// Writes two digits for each byte.
pub(crate) fn write(bytes: &[u8], text: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(text.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Two digits for each byte.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let mut digits = vec![0; 2 * bytes.len()];
    write(bytes, &mut digits);
    digits.into_iter().map(char::from).collect()
}

/// The bytes that lower-case hexadecimal digits stand for, if they are as many.
pub(crate) fn read<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Bytes written in digits of either case, as others write them; at least one.
#[must_use]
pub fn read_any(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    (!text.is_empty()).then(|| text.as_bytes().chunks(2).map(pair).collect())?
}

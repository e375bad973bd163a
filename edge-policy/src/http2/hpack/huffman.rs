//! Huffman's code of texts (RFC 7541, 5.2). It is canonical: the lengths of its codes say all of it.

/// The text; `None` if it is not coded as it has to be.
pub(super) fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(coded.len() * 2);
    let (mut bits, mut count, mut bytes) = (0_u64, 0, coded.iter());
    loop {
        while count <= 56
            && let Some(byte) = bytes.next()
        {
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        let top = (bits >> 32) as u32;
        let length = (SHORTEST..=LONGEST).find(|length| top < CODE.ends[*length]);
        let Some(length) = length.filter(|length| *length <= count) else {
            // What is left is the beginning of the code that ends all, and less than a byte of it.
            return (count < 8 && bits == !(u64::MAX >> count)).then_some(out);
        };
        let at = (top - CODE.begins[length]) >> (32 - length);
        out.push(CODE.symbols[usize::from(CODE.firsts[length]) + at as usize]);
        bits <<= length;
        count -= length;
    }
}

/// The code, by the lengths of codes.
struct Code {
    /// Codes of this length and shorter ones are less than this, as the highest bits of 32.
    ends: [u32; LONGEST + 1],
    /// The first of this length, the same way.
    begins: [u32; LONGEST + 1],
    /// Its symbol's place.
    firsts: [u16; LONGEST + 1],
    /// In the order of their codes.
    symbols: [u8; 256],
}

static CODE: Code = Code::new();

impl Code {
    const fn new() -> Self {
        let mut code = Self {
            ends: [0; LONGEST + 1],
            begins: [0; LONGEST + 1],
            firsts: [0; LONGEST + 1],
            symbols: [0; 256],
        };
        let (mut length, mut next, mut placed) = (SHORTEST, 0_u32, 0);
        while length <= LONGEST {
            code.begins[length] = next;
            code.firsts[length] = placed as u16;
            let mut symbol = 0;
            while symbol < LENGTHS.len() {
                if LENGTHS[symbol] as usize == length {
                    code.symbols[placed] = symbol as u8;
                    placed += 1;
                    next += 1 << (32 - length);
                }
                symbol += 1;
            }
            code.ends[length] = next;
            length += 1;
        }
        code
    }
}

const SHORTEST: usize = 5;
const LONGEST: usize = 30;

/// Bits of each symbol's code (RFC 7541, appendix B). The last code of the longest is no symbol's: it ends
/// all, and is never sent whole.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

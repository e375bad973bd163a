//! A small assembler of BPF: one method an instruction, and labels to jump to.

use std::{collections::BTreeMap, marker::PhantomData, os::fd::AsRawFd as _};

use super::Map;

/// A program in the making. Its maps are known by their descriptors, which must be open when it is
/// loaded.
#[derive(Default)]
pub(super) struct Code<'m> {
    words: Vec<u64>,
    maps: PhantomData<&'m Map>,
    labels: BTreeMap<&'static str, usize>,
    jumps: Vec<(usize, &'static str)>,
}

/// A register: 0 is what a call returns, 1 to 5 are its arguments, 6 to 9 outlive it, 10 is the stack.
pub(super) type Register = u8;

/// Bytes of a load or a store.
#[derive(Clone, Copy)]
pub(super) enum Size {
    Half = 0x08,
    Word = 0x00,
    Double = 0x18,
}

/// When to jump.
#[derive(Clone, Copy)]
pub(super) enum If {
    Equal = 0x10,
    Above = 0x20,
    NotEqual = 0x50,
}

impl<'m> Code<'m> {
    /// The words of the whole program.
    pub(super) fn finish(&mut self) -> &[u64] {
        for (at, label) in self.jumps.drain(..) {
            let distance = self.labels[label] - at - 1;
            self.words[at] |= (distance as u64 & 0xffff) << 16;
        }
        &self.words
    }

    /// Marks this place. Jumps lead forward only.
    pub(super) fn here(mut self, label: &'static str) -> Self {
        self.labels.insert(label, self.words.len());
        self
    }

    pub(super) fn set(self, to: Register, value: i32) -> Self {
        self.word(0xb7, to, 0, 0, value)
    }

    pub(super) fn copy(self, to: Register, from: Register) -> Self {
        self.word(0xbf, to, from, 0, 0)
    }

    pub(super) fn add(self, to: Register, value: i32) -> Self {
        self.word(0x07, to, 0, 0, value)
    }

    pub(super) fn add_register(self, to: Register, from: Register) -> Self {
        self.word(0x0f, to, from, 0, 0)
    }

    pub(super) fn and(self, to: Register, value: i32) -> Self {
        self.word(0x57, to, 0, 0, value)
    }

    pub(super) fn xor(self, to: Register, value: i32) -> Self {
        self.word(0xa7, to, 0, 0, value)
    }

    pub(super) fn shift_right(self, to: Register, bits: i32) -> Self {
        self.word(0x77, to, 0, 0, bits)
    }

    pub(super) fn load(self, size: Size, to: Register, from: Register, offset: i16) -> Self {
        self.word(0x61 | size as u8, to, from, offset, 0)
    }

    pub(super) fn store(self, size: Size, to: Register, offset: i16, from: Register) -> Self {
        self.word(0x63 | size as u8, to, from, offset, 0)
    }

    pub(super) fn store_value(self, size: Size, to: Register, offset: i16, value: i32) -> Self {
        self.word(0x62 | size as u8, to, 0, offset, value)
    }

    pub(super) fn jump_if(self, left: Register, when: If, right: i32, label: &'static str) -> Self {
        self.jump(0x05 | when as u8, left, 0, right, label)
    }

    pub(super) fn jump_if_register(
        self,
        left: Register,
        when: If,
        right: Register,
        label: &'static str,
    ) -> Self {
        self.jump(0x0d | when as u8, left, right, 0, label)
    }

    pub(super) fn call(self, helper: i32) -> Self {
        self.word(0x85, 0, 0, 0, helper)
    }

    pub(super) fn exit(self, answer: i32) -> Self {
        self.set(0, answer).word(0x95, 0, 0, 0, 0)
    }

    pub(super) fn exit_as_is(self) -> Self {
        self.word(0x95, 0, 0, 0, 0)
    }

    /// Loads a map, for a helper.
    pub(super) fn map(self, to: Register, map: &'m Map) -> Self {
        self.word(0x18, to, 1, 0, map.0.as_raw_fd()).word(0, 0, 0, 0, 0)
    }

    /// Loads the address of the first value of an array.
    pub(super) fn value(self, to: Register, map: &'m Map) -> Self {
        self.word(0x18, to, 2, 0, map.0.as_raw_fd()).word(0, 0, 0, 0, 0)
    }

    fn jump(
        mut self,
        code: u8,
        left: Register,
        right: Register,
        value: i32,
        label: &'static str,
    ) -> Self {
        self.jumps.push((self.words.len(), label));
        self.word(code, left, right, 0, value)
    }

    fn word(mut self, code: u8, to: Register, from: Register, offset: i16, value: i32) -> Self {
        let registers = u64::from(to | from << 4);
        let (offset, value) = (u64::from(offset.cast_unsigned()), u64::from(value.cast_unsigned()));
        self.words.push(u64::from(code) | registers << 8 | offset << 16 | value << 32);
        self
    }
}

//! The numbers under which the kernel knows entries.

/// There is no number left for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoNumber;

/// The numbers of entries. Those from 1 on are given out; a number that was given back is given
/// out again.
#[derive(Clone, Debug)]
pub struct Numbers {
    next: u32,
    end: u32,
    free: Vec<u32>,
}

impl Numbers {
    /// Numbers below `end`.
    #[must_use]
    pub fn new(end: u32) -> Self {
        Self { next: 1, end, free: Vec::new() }
    }

    /// Takes so many, all or none.
    ///
    /// # Errors
    /// [`NoNumber`] if there are not as many.
    pub fn take(&mut self, count: usize) -> Result<Vec<u32>, NoNumber> {
        let used = self.free.len().min(count);
        if (self.end - self.next) as usize + used < count {
            return Err(NoNumber);
        }
        let mut taken = self.free.split_off(self.free.len() - used);
        let fresh = (count - used) as u32;
        taken.extend(self.next..self.next + fresh);
        self.next += fresh;
        Ok(taken)
    }

    /// Gives numbers back.
    pub fn give_back(&mut self, numbers: impl IntoIterator<Item = u32>) {
        self.free.extend(numbers);
    }

    /// Numbers in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.next as usize - 1 - self.free.len()
    }

    /// Numbers there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.end as usize - 1
    }
}

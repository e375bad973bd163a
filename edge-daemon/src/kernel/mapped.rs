//! Kernel tables as memory: what would be a system call a value is a load or a store.

use std::{
    io,
    ops::Deref,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};

use super::KernelError;

/// An array in the kernel, of values of `N` words.
pub(super) struct Mapped<const N: usize> {
    first: NonNull<[AtomicU64; N]>,
    len: usize,
    /// Programs that are not loaded yet know the table by this descriptor.
    _map: MapData,
}

// SAFETY: the memory belongs to no thread, and safe code reaches it by atomic words alone.
unsafe impl<const N: usize> Send for Mapped<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Sync for Mapped<N> {}

impl<const N: usize> Mapped<N> {
    /// Takes an array that was made with `BPF_F_MMAPABLE` out of the loaded object.
    pub(super) fn take(programs: &mut Ebpf, table: &'static str) -> Result<Self, KernelError> {
        let error = |source| KernelError::Map { table, source };
        let Some(Map::Array(map)) = programs.take_map(table) else {
            return Err(KernelError::Missing { name: table });
        };
        let info = map.info().map_err(|source| KernelError::Table { table, source })?;
        let len = info.max_entries() as usize;
        if info.value_size() as usize != 8 * N {
            return Err(error(io::ErrorKind::InvalidData.into()));
        }
        // SAFETY: a new mapping of a descriptor that is open, at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len * 8 * N,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(error(io::Error::last_os_error()));
        }
        let first =
            NonNull::new(address.cast()).ok_or_else(|| error(io::ErrorKind::Other.into()))?;
        Ok(Self { first, len, _map: map })
    }

    /// A part of the array as plain memory.
    ///
    /// # Safety
    /// While the slice lives, nobody else may use this part, in the kernel or here.
    ///
    /// # Panics
    /// If the part reaches beyond the array.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that it is the only one")]
    pub(super) unsafe fn exclusive(&self, from: usize, len: usize) -> &mut [[u64; N]] {
        let part = self[from..from + len].as_ptr().cast_mut().cast();
        // SAFETY: the part is inside of the mapping, aligned and initialized as words are; as the
        // caller promises, nobody else uses it.
        unsafe { std::slice::from_raw_parts_mut(part, len) }
    }
}

impl<const N: usize> Deref for Mapped<N> {
    type Target = [[AtomicU64; N]];

    fn deref(&self) -> &Self::Target {
        // SAFETY: the mapping is there until `self` is dropped, page-aligned, zeroed by the kernel;
        // whoever else writes to it, writes words.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<const N: usize> Drop for Mapped<N> {
    fn drop(&mut self) {
        // SAFETY: the address and length of the mapping that `new` made; nothing borrows from it.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.len * 8 * N) };
    }
}

//! The few eBPF instructions that a device program is made of, in the kernel's encoding
//! (Documentation/bpf/standardization/instruction-set.rst; `struct bpf_insn` in linux/bpf.h).
//!
//! All arithmetic and all comparisons are on 64 bits, with the immediate's sign extended.

/// One instruction, as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) opcode: u8,
    /// Two registers of four bits each, see [`Instruction::new`].
    pub(super) registers: u8,
    /// Of a load: bytes. Of a jump: instructions, from the one after it.
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// The registers in use. A program finds the context in R1 and leaves its answer in R0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Register {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
}

/// `destination = *(u32 *)(source + offset)`
pub(super) const LOAD_WORD: u8 = 0x61;
/// `destination = immediate`
pub(super) const MOVE: u8 = 0xb7;
/// `destination = source`
pub(super) const MOVE_REGISTER: u8 = 0xbf;
/// `destination &= immediate`
pub(super) const AND: u8 = 0x57;
/// `destination >>= immediate`, logically
pub(super) const SHIFT_RIGHT: u8 = 0x77;
/// Jumps.
pub(super) const JUMP: u8 = 0x05;
/// Jumps if `destination == immediate`.
pub(super) const JUMP_EQUAL: u8 = 0x15;
/// Jumps if `destination & immediate`.
pub(super) const JUMP_SET: u8 = 0x45;
/// Jumps if `destination != immediate`.
pub(super) const JUMP_UNEQUAL: u8 = 0x55;
/// Ends the program.
pub(super) const EXIT: u8 = 0x95;

impl Instruction {
    pub(super) fn new(opcode: u8, destination: Register, source: Register, immediate: i32) -> Self {
        let (destination, source) = (destination as u8, source as u8);
        // The kernel has bit fields here, whose order is the byte order's.
        let registers = if cfg!(target_endian = "little") {
            destination | (source << 4)
        } else {
            (destination << 4) | source
        };
        Self { opcode, registers, offset: 0, immediate }
    }

    pub(super) fn with_offset(self, offset: i16) -> Self {
        Self { offset, ..self }
    }
}

"""emulate.py LIBRARY MODEL PROGRAM [ARGUMENT...]: runs a Linux program on a processor that this machine is not.

The processor is Bochs', as the package bochscpu-python binds it; LIBRARY is emulate.c, compiled, which says
how a program and its system calls live in this process. MODEL is one of Bochs' names: sapphire_rapids has
AVX-512 VNNI and AVX-VNNI, arrow_lake only the second. The exit code is the program's, or 125.
"""
import ctypes
import os
import sys

CR0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1 << 0  # PG, WP, NE, ET, MP, PE
CR4 = 1 << 18 | 1 << 10 | 1 << 9 | 1 << 5  # OSXSAVE, OSXMMEXCPT, OSFXSR, PAE
EFER = 1 << 11 | 1 << 10 | 1 << 8 | 1 << 0  # NXE, LMA, LME, SCE
XCR0 = 1 << 7 | 1 << 6 | 1 << 5 | 1 << 2 | 1 << 1 | 1 << 0  # AVX-512, AVX, SSE, x87
KERNEL_CODE, USER_CODE, USER_DATA = 0x10, 0x33, 0x2B
CODE, DATA = 0xAFFB, 0xCFF3  # attributes: present, of ring 3, 64-bit code; writable data


def strings(texts):
    return (ctypes.c_char_p * (len(texts) + 1))(*(text.encode() for text in texts), None)


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    library, model, *program = sys.argv[1:]
    # Before bochscpu, whose missing and replaced functions are found there.
    runner = ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    import bochscpu
    import bochscpu._bochscpu

    def segment(selector, attributes):
        made = bochscpu.Segment()
        made.present, made.selector, made.base = True, selector, 0
        made.limit, made.attr = 0xFFFFFFFF, attributes
        return made

    runner.emulate_open(bochscpu._bochscpu.__file__.encode(), model.encode())
    session = bochscpu.Session()
    start = (ctypes.c_uint64 * 4)()
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    runner.emulate_load(program[0].encode(), len(program), strings(program), strings(environment), start)
    state = bochscpu.State()
    state.cr0, state.cr4, state.efer, state.xcr0 = CR0, CR4, EFER, XCR0
    state.rip, state.rsp, state.cr3, state.lstar = start
    # `sysret` takes its segments from 16 below the user's code.
    state.star = (USER_CODE - 16) << 48 | KERNEL_CODE << 32
    state.cs = segment(USER_CODE, CODE)
    state.ss = state.ds = state.es = segment(USER_DATA, DATA)
    state.fs = state.gs = segment(0, DATA)
    # As the kernel starts a program: no exceptions, rounding to nearest, an empty x87.
    state.mxcsr, state.mxcsr_mask, state.fpcw, state.fptw = 0x1F80, 0xFFFF, 0x37F, 0xFFFF
    state.rflags = 0x202
    session.cpu.state = state
    sys.stdout.flush()
    runner.emulate_run()


main()

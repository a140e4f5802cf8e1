// From a lane's bytes of a unit of weights to the matrix A of mma.sync. src/kernel/cuda/weights.rs draws the
// bytes. Everything becomes signed bytes: codes below 128 are their own, codes of 8 bits are stored less 128,
// and codes of a table become its entries. What that leaves of the value (zero points, signs) is put right with
// the sum of the codes of x, once for each group.
#pragma once
#include "params.cuh"

/// The codes of one module: `bits` wide, through a table or not.
template <int bits, bool table> struct Codes {
  static constexpr int LOW = bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits;
  static constexpr int HIGH = bits - LOW;
  /// Columns and bytes of a unit for a strip, and the steps of 32 columns in it.
  static constexpr int UNIT = LOW == 8 ? 64 : 256 / (HIGH ? HIGH : LOW);
  static constexpr int BYTES = UNIT * bits * 2;
  static constexpr int STEPS = UNIT / 32;
  static constexpr int LOW_LINES = UNIT * LOW / 256, LINES = LOW_LINES + (HIGH ? 1 : 0);
  static constexpr int LINE_STEPS = 8 / LOW;

  /// A lane's 16 bytes of every line.
  uint32_t words[LINES][4];

  /// Takes them from a unit in shared (or any) memory.
  BL_MEMBER void load(const unsigned char* unit, int lane) {
#pragma unroll
    for (int i = 0; i < LINES; i++) {
      const uint4 q = *(const uint4*)(unit + i * 512 + lane * 16);
      words[i][0] = q.x;
      words[i][1] = q.y;
      words[i][2] = q.z;
      words[i][3] = q.w;
    }
  }

  /// A of step `step`, a constant wherever this is unrolled.
  BL_MEMBER void fragment(int step, const uint32_t (&entries)[4], uint32_t (&a)[4]) const {
    constexpr uint32_t LOW_MASK = ((1u << (LOW & 7)) - 1) * 0x01010101u;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t low = words[step / LINE_STEPS][i];
      uint32_t a_i = low;
      if (LOW < 8) a_i = low >> (step % LINE_STEPS * LOW) & LOW_MASK;
      if (HIGH) {
        constexpr uint32_t HIGH_MASK = ((1u << HIGH) - 1) * 0x01010101u << (LOW & 7);
        const int shift = step * HIGH - LOW;
        const uint32_t high = words[LINES - 1][i];
        a_i |= (shift >= 0 ? high >> (shift & 31) : high << (-shift & 31)) & HIGH_MASK;
      }
      a[i] = table ? looked_up(a_i, entries) : a_i;
    }
  }

  /// The same straight from memory, for any step of a row of units that touch.
  static BL_MEMBER void fragment_at(const unsigned char* units, int step, int lane, const uint32_t (&entries)[4],
                                    uint32_t (&a)[4]) {
    constexpr uint32_t LOW_MASK = ((1u << (LOW & 7)) - 1) * 0x01010101u;
    const unsigned char* unit = units + step / STEPS * BYTES + lane * 16;
    step %= STEPS;
    const uint4 low = *(const uint4*)(unit + step / LINE_STEPS * 512);
    const int shift = LOW < 8 ? step % LINE_STEPS * LOW : 0;
    const uint32_t mask = LOW < 8 ? LOW_MASK : 0xffffffffu;
    a[0] = low.x >> shift & mask;
    a[1] = low.y >> shift & mask;
    a[2] = low.z >> shift & mask;
    a[3] = low.w >> shift & mask;
    if (HIGH) {
      constexpr uint32_t HIGH_MASK = ((1u << HIGH) - 1) * 0x01010101u;
      const uint4 high = *(const uint4*)(unit + LOW_LINES * 512);
      a[0] |= (high.x >> step * HIGH & HIGH_MASK) << (LOW & 7);
      a[1] |= (high.y >> step * HIGH & HIGH_MASK) << (LOW & 7);
      a[2] |= (high.z >> step * HIGH & HIGH_MASK) << (LOW & 7);
      a[3] |= (high.w >> step * HIGH & HIGH_MASK) << (LOW & 7);
    }
    if (table) {
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = looked_up(a[i], entries);
    }
  }

  /// Four codes of 4 bits, a byte each, into the entries of a table.
  static BL_MEMBER uint32_t looked_up(uint32_t codes, const uint32_t (&entries)[4]) {
    const uint32_t pairs = codes | codes >> 4;                       // bytes 0 and 2: two codes each
    const uint32_t selector = __byte_perm(pairs, 0, 0x4420) & 0x7777; // the lower three bits of all four
    const uint32_t first = __byte_perm(entries[0], entries[1], selector);
    const uint32_t second = __byte_perm(entries[2], entries[3], selector);
    const uint32_t upper = (codes >> 3 & 0x01010101u) * 0xffu;
    return (first & ~upper) | (second & upper);
  }
};

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a draw is a pure
// function of key and counter, the same as on every other device.
#pragma once
#include "common.h"

METAL_FUNC uint4 philox_block(uint key0, uint key1, uint c0, uint c1, uint c2, uint c3) {
  for (uint round = 0; round < 10; round++) {
    const uint high0 = mulhi(0xd2511f53u, c0), low0 = 0xd2511f53u * c0;
    const uint high1 = mulhi(0xcd9e8d57u, c2), low1 = 0xcd9e8d57u * c2;
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return uint4(c0, c1, c2, c3);
}
METAL_FUNC uint philox_word(uint key0, uint key1, uint c0, uint c1, uint c2, uint c3) {
  return philox_block(key0, key1, c0, c1, c2, c3).x;
}

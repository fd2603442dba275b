// Written by scripts/gen.ts from src/ops. Do not edit.
#pragma once
#define RLV_ABI_HASH "43898f2aa3191627"

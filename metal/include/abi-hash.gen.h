// Written by scripts/gen.ts from src/ops. Do not edit.
#pragma once
#define RLV_ABI_HASH "9ad50b4637903be8"

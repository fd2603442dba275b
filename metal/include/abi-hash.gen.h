// Written by scripts/gen.ts from src/ops. Do not edit.
#pragma once
#define RLV_ABI_HASH "01e10654808ad0d7"

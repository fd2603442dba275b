// Written by scripts/gen.ts from src/ops. Do not edit.
#pragma once
#define RLV_ABI_HASH "df93f217b100556d"

// Written by scripts/gen.ts from src/ops. Do not edit.
/** Hash of the native interface that this source speaks. */
export const ABI_HASH = "c94c0c8ed39c4f61";

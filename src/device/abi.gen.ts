// Written by scripts/gen.ts from src/ops. Do not edit.
/** Hash of the native interface that this source speaks. */
export const ABI_HASH = "43e4f3e3c2f8836f";

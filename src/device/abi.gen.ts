// Written by scripts/gen.ts from src/ops. Do not edit.
/** Hash of the native interface that this source speaks. */
export const ABI_HASH = "60bd10bdb9a6353c";

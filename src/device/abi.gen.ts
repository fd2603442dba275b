// Written by scripts/gen.ts from src/ops. Do not edit.
/** Hash of the native interface that this source speaks. */
export const ABI_HASH = "7a91bb7d6618bd9d";

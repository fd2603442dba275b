/**
 * The native library inside a standalone binary. From a clone there is none; scripts/build compiles with a
 * module of the same shape that embeds the file.
 */
export const embeddedLibrary: { readonly path: string; readonly sha256: string } | null = null;

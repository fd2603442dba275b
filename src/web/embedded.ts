import type { AssetEntry } from "./assets.ts";

/**
 * The page inside a standalone binary. From a clone there is none; scripts/build compiles with a module of the same
 * shape that embeds the files of build/web.
 */
export const embeddedPage: readonly (AssetEntry & { readonly path: string })[] | null = null;

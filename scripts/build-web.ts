/**
 * Bundles the page (src/web/page) into build/web: index.html, and its script, style sheet and images under names that
 * contain their hash. content.json, written last, lists every file with its type and sha256: src/web/assets.ts reads it
 * in a clone, scripts/build.ts embeds what it lists.
 *
 *   bun scripts/build-web.ts [--quiet]
 */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, join, relative } from "node:path";
import type { AssetEntry } from "../src/web/assets.ts";
import { fail, root } from "./objects.ts";

const target = join(root, "build/web");
const temporary = join(root, `build/.tmp-web-${process.pid}`);

const TYPES: Readonly<Record<string, string>> = {
  html: "text/html;charset=utf-8",
  js: "text/javascript;charset=utf-8",
  css: "text/css;charset=utf-8",
  svg: "image/svg+xml",
  png: "image/png",
  woff2: "font/woff2",
};

function entryOf(path: string): AssetEntry {
  const name = basename(path);
  const type = TYPES[name.slice(name.lastIndexOf(".") + 1)];
  if (type === undefined) fail(`a page has no such files: ${name}: scripts/build-web.ts lists their types`);
  const data = readFileSync(path);
  return { name, type, bytes: data.length, sha256: createHash("sha256").update(data).digest("hex") };
}

process.on("exit", () => rmSync(temporary, { recursive: true, force: true }));
mkdirSync(temporary, { recursive: true });
const result = await Bun.build({
  entrypoints: [join(root, "src/web/page/index.html")],
  outdir: temporary,
  target: "browser",
  minify: true,
  publicPath: "/",
  naming: { entry: "[name].[ext]", chunk: "[name]-[hash].[ext]", asset: "[name]-[hash].[ext]" },
  define: { "process.env.NODE_ENV": '"production"' },
  throw: false,
});
for (const log of result.logs) process.stderr.write(`${log}\n`);
if (!result.success) fail("cannot bundle the page: src/web/page: see the messages above");
const files = result.outputs.map((output) => entryOf(output.path)).sort((a, b) => (a.name < b.name ? -1 : 1));
// The policy that the page is served under allows no script or style inside the document.
const html = readFileSync(join(temporary, "index.html"), "utf8");
if (/<script(?![^>]*\ssrc=)|<style|\son\w+=|\sstyle=/i.test(html))
  fail("the page has a script or a style inside its document: build/web/index.html: move it to a file");
writeFileSync(join(temporary, "content.json"), `${JSON.stringify(files, null, 2)}\n`);
rmSync(target, { recursive: true, force: true });
renameSync(temporary, target);
if (!process.argv.includes("--quiet")) {
  const size = files.reduce((sum, file) => sum + file.bytes, 0);
  process.stderr.write(
    `rlv: ${relative(root, target)} (${files.length} files, ${(size / 1e3).toFixed(0)} kB)\n`,
  );
}

import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";

const src = resolve(import.meta.dir, "../src");

/** A folder imports only folders to its right. */
const ORDER = [
  "cli",
  "sweep",
  "config",
  "recipe",
  "run",
  "data",
  "rollout",
  "reward",
  "loss",
  "nn",
  "tape",
  "ops",
  "device",
  "core",
] as const;

interface Import {
  readonly from: string;
  readonly to: string;
  /** `import type`: gone at run time. */
  readonly typeOnly: boolean;
}

const scanners = { ts: new Bun.Transpiler({ loader: "ts" }), tsx: new Bun.Transpiler({ loader: "tsx" }) };

function files(dir: string): string[] {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    const path = join(dir, entry.name);
    return entry.isDirectory() ? files(path) : /\.tsx?$/.test(path) ? [path] : [];
  });
}

/** Every relative import of a source; the scanner sees what is left at run time, the pattern also types. */
function importsOf(path: string, text: string): Import[] {
  const target = (specifier: string) => relative(src, resolve(dirname(path), specifier));
  const scanner = scanners[path.endsWith(".tsx") ? "tsx" : "ts"];
  const running = new Set(scanner.scanImports(text).map((each) => each.path));
  const found = new Set(running);
  for (const match of text.matchAll(/(?:\bfrom|\bimport\s*\(?)\s*"(\.[^"]+)"/g)) found.add(match[1]!);
  return [...found]
    .filter((specifier) => specifier.startsWith("."))
    .map((specifier) => ({
      from: relative(src, path),
      to: target(specifier),
      typeOnly: !running.has(specifier),
    }));
}

const layerOf = (path: string) => path.split("/")[0]!;

/** Why an import is not allowed; undefined when it is. */
function violation({ from, to, typeOnly }: Import): string | undefined {
  // package.json for the version.
  if (to.startsWith(".."))
    return from === "core/version.ts" && to === "../package.json" ? undefined : "leaves src";
  const [a, b] = [layerOf(from), layerOf(to)];
  if (a === b) return undefined;
  if (a === "io") return b === "core" ? undefined : "io imports core alone";
  if (b === "io") return a === "core" ? "core imports nothing" : undefined;
  // Readers of what runs wrote, and the page over them: a crash there touches no run.
  if (a === "report") return b === "core" ? undefined : "report imports core and io alone";
  if (a === "web")
    return b === "core" || b === "report" ? undefined : "web imports core, io and report alone";
  if (b === "report")
    return ["recipe", "run", "sweep", "cli"].includes(a) ? undefined : `${a} does not report`;
  if (b === "web") return a === "cli" ? undefined : "only cli serves pages";
  // What those who import the package get.
  if (a === "index.ts") return undefined;
  // The types of a resolved config come from its zod schema, the single source of truth: recipes and the modules
  // behind the commands may name them, which leaves no import at run time.
  if (b === "config" && typeOnly && (a === "recipe" || a === "run")) return undefined;
  const [i, j] = [ORDER.indexOf(a as never), ORDER.indexOf(b as never)];
  if (i < 0 || j < 0) return `unknown layer ${i < 0 ? a : b}`;
  return i < j ? undefined : `${a} is right of ${b}`;
}

test("layers import to the right only", () => {
  const imports = files(src).flatMap((path) => importsOf(path, readFileSync(path, "utf8")));
  expect(imports.length).toBeGreaterThan(50);
  const wrong = imports.flatMap((each) => {
    const reason = violation(each);
    return reason === undefined ? [] : [`${each.from} -> ${each.to}: ${reason}`];
  });
  expect(wrong).toEqual([]);
});

test("only src/device opens libraries and handles pointers", () => {
  const users = files(src)
    .filter((path) => /from "bun:ffi"/.test(readFileSync(path, "utf8")))
    .map((path) => layerOf(relative(src, path)));
  expect(new Set(users)).toEqual(new Set(users.length === 0 ? [] : ["device"]));
});

test("only src/core/env.ts reads the environment", () => {
  const users = files(src)
    .filter((path) =>
      /process\.env|Bun\.env/.test(readFileSync(path, "utf8").replace(/\/\*\*[\s\S]*?\*\//g, "")),
    )
    .map((path) => relative(src, path));
  expect(users).toEqual(["core/env.ts"]);
});

test("the rule itself: what must be refused is refused", () => {
  const see = (from: string, text: string) =>
    importsOf(join(src, from), text).map((each) => violation(each) !== undefined);
  expect(see("nn/a.ts", 'import { x } from "../rollout/b.ts"; x();')).toEqual([true]);
  expect(see("nn/a.ts", 'import { x } from "../tape/b.ts"; x();')).toEqual([false]);
  expect(see("io/a.ts", 'import { x } from "../device/b.ts"; x();')).toEqual([true]);
  expect(see("core/a.ts", 'import { x } from "../io/b.ts"; x();')).toEqual([true]);
  expect(see("run/a.ts", 'export async function f() { return await import("../recipe/index.ts"); }')).toEqual(
    [true],
  );
  expect(see("run/a.ts", 'export * from "../cli/main.ts";')).toEqual([true]);
  expect(see("run/a.ts", 'import { x } from "../config/resolve.ts"; x();')).toEqual([true]);
  expect(see("run/a.ts", 'import type { X } from "../config/resolve.ts"; export type Y = X;')).toEqual([
    false,
  ]);
  expect(see("nn/a.ts", 'import type { X } from "../config/resolve.ts"; export type Y = X;')).toEqual([true]);
  expect(see("core/a.ts", 'import { x } from "../../tests/b.ts"; x();')).toEqual([true]);
  expect(see("report/a.ts", 'import { x } from "../io/b.ts"; x();')).toEqual([false]);
  expect(see("report/a.ts", 'import { x } from "../run/b.ts"; x();')).toEqual([true]);
  expect(see("web/a.ts", 'import { x } from "../report/b.ts"; x();')).toEqual([false]);
  expect(see("web/a.ts", 'import { x } from "../run/b.ts"; x();')).toEqual([true]);
  expect(see("nn/a.ts", 'import { x } from "../report/b.ts"; x();')).toEqual([true]);
  expect(see("run/a.ts", 'import { x } from "../web/b.ts"; x();')).toEqual([true]);
});

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dir, "..");

export interface GoldenCase {
  /** GROUP/NAME. */
  readonly name: string;
  readonly group: string;
  readonly dir: string;
  readonly kind: string;
  // biome-ignore lint/suspicious/noExplicitAny: case files are free-form JSON, each test knows its fields
  readonly spec: any;
}

/** Folders of goldens to walk: RLV_GOLDENS alone if set; else our copy, and the full set beside a checkout. */
export function goldenDirs(): string[] {
  const named = process.env.RLV_GOLDENS;
  if (named) {
    if (!existsSync(named)) throw new Error(`RLV_GOLDENS: no such folder: ${named}`);
    return [resolve(named)];
  }
  return [join(root, "tests/goldens"), resolve(root, "../shared/goldens")].filter((dir) => existsSync(dir));
}

/** Every case of the given groups, the first folder that has a case wins. */
export function goldenCases(...groups: string[]): GoldenCase[] {
  const cases = new Map<string, GoldenCase>();
  for (const dir of goldenDirs()) {
    for (const group of groups.length > 0 ? groups : readdirSync(dir).sort()) {
      const folder = join(dir, group);
      if (!existsSync(folder) || !existsSync(join(dir, group))) continue;
      let entries: string[] = [];
      try {
        entries = readdirSync(folder).sort();
      } catch {
        continue;
      }
      for (const entry of entries) {
        const file = join(folder, entry, "case.json");
        const name = `${group}/${entry}`;
        if (cases.has(name) || !existsSync(file)) continue;
        const spec = JSON.parse(readFileSync(file, "utf8"));
        cases.set(name, { name, group, dir: join(folder, entry), kind: spec.kind, spec });
      }
    }
  }
  return [...cases.values()];
}

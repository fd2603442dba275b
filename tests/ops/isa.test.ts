/** The table's values and gradients, and the invariances, on every other instruction set of this processor. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Device } from "../../src/device/device.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-isa-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const root = resolve(import.meta.dir, "../..");
/** All that a library may hold; the native side says which of them this processor has. */
const KNOWN = process.arch === "arm64" ? ["neon", "portable"] : ["avx512bf16", "avx512", "avx2", "portable"];

function bunWith(isa: string, ...args: string[]): { code: number; text: string } {
  const child = Bun.spawnSync([process.execPath, ...args], {
    cwd: root,
    // What the reference device says is the same for all.
    env: { RLV_TABLE_REFERENCES: join(scratch, "references"), ...process.env, RLV_ISA: isa },
    stdout: "pipe",
    stderr: "pipe",
  });
  return { code: child.exitCode, text: `${child.stdout}${child.stderr}` };
}

const device = Device.open("cpu", 1);
const best = String(device.info.isa);
device.close();

test("isa: the best instruction set is a known one", () => expect(KNOWN).toContain(best));

// Sets wider than the best one are missing on this processor.
for (const isa of KNOWN.slice(KNOWN.indexOf(best) + 1)) {
  const files = ["table", "invariance"].map((name) => join(root, `tests/ops/${name}.test.ts`));
  test(`isa: values, gradients and invariances on ${isa}`, () => {
    const opened = bunWith(
      isa,
      "-e",
      `import { Device } from "${join(root, "src/device/device.ts")}"; console.log(Device.open("cpu", 1).info.isa)`,
    );
    expect(opened.text.trim()).toBe(isa);
    const { code, text } = bunWith(isa, "test", ...files, "-t", "^(value|grad|threads|[a-z_]+:) ");
    expect(text).toMatch(/\n\s*[1-9]\d\d+ pass\n/);
    if (code !== 0)
      throw new Error(
        text
          .split("\n")
          .filter((line) => line.startsWith("(fail)"))
          .join("\n"),
      );
  }, 240_000);
}

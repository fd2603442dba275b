/** The Metal device as a device: errors, order, memory, profile, watchdog, caches; on software Metal. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Device } from "../../src/device/device.ts";
import { add, copy, fill } from "../../src/ops/elementwise.ts";
import { embedFwd } from "../../src/ops/embedding.ts";
import { gemmNt } from "../../src/ops/gemm.ts";
import { catalogue } from "../../src/ops/index.ts";

const root = resolve(import.meta.dir, "../..");
const scratch = mkdtempSync(join(tmpdir(), "rlv-soft-device-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Runs a module of this project in a process of its own: environment is read when a device opens. */
function script(
  body: string,
  env: Readonly<Record<string, string>> = {},
): { out: string; err: string; code: number } {
  const text = `
    import { Device } from "${root}/src/device/device.ts";
    import { fill } from "${root}/src/ops/elementwise.ts";
    import { gemmNt } from "${root}/src/ops/gemm.ts";
    import "${root}/src/ops/index.ts";
    const device = Device.open("soft");
    ${body}`;
  const result = Bun.spawnSync([process.execPath, "-e", text], {
    env: { ...process.env, ...env },
    cwd: root,
  });
  return { out: result.stdout.toString(), err: result.stderr.toString(), code: result.exitCode };
}

const PRODUCT = `
  const n = 512;
  const x = device.buffer(n * n * 4, "x"), w = device.buffer(n * n * 4, "w"), y = device.buffer(n * n * 4, "y");
  const product = () => device.emit(gemmNt, { x: x.range(), w: w.range(), y: y.range(), bias: null,
    m: n, n, k: n, dt: 0, ydt: 0, accumulate: 0 });`;

describe.skipIf(!existsSync(join(root, "build/librlv-soft.so")))(
  "the Metal device (scripts/build-native --soft)",
  () => {
    test("operations take effect in order, over many command buffers", () => {
      const device = Device.open("soft");
      const count = 700;
      const [a, b] = [device.buffer(64, "a"), device.buffer(64, "b")];
      device.emit(fill, { y: a.range(), n: 16, value: 1 });
      for (let i = 0; i < count; i++) {
        device.emit(copy, { y: b.range(), x: a.range(), n: 64 });
        device.emit(fill, { y: a.range(), n: 8, value: i });
        device.emit(add, { y: a.range(), a: a.range(), b: b.range(), n: 8, dt: 0 });
      }
      device.finish();
      const values = [...new Float32Array(a.view())];
      expect(values.slice(0, 8)).toEqual(new Array(8).fill(1 + (count * (count - 1)) / 2));
      expect(values.slice(8)).toEqual(new Array(8).fill(1));
      expect(device.stats().barriers).toBeGreaterThan(count);
      a.free();
      b.free();
      device.close();
    });

    test("memory comes zeroed, small and large, also where something was freed", () => {
      const device = Device.open("soft");
      for (const bytes of [16, 1 << 20, 9 << 20, 80 << 20, 16, 1 << 20]) {
        const buffer = device.buffer(bytes, "memory");
        const words = new Uint32Array(buffer.view());
        expect(words.every((word) => word === 0)).toBe(true);
        words.fill(7);
        buffer.free();
      }
      expect(device.stats().liveBytes).toBe(0);
      device.close();
    });

    test("bad data is an error with the operation's name and the value; the device goes on", () => {
      const device = Device.open("soft");
      const [table, ids, y] = [
        device.buffer(32 * 8 * 4, "table"),
        device.buffer(16, "ids"),
        device.buffer(128, "y"),
      ];
      new Uint32Array(ids.view()).set([3, 99, 1, 2]);
      const lookup = () => {
        device.emit(embedFwd, {
          ...{ table: table.range(), ids: ids.range(), y: y.range() },
          ...{ rows: 4, cols: 8, vocab: 32, dt: 0, wdt: 0 },
        });
        device.finish();
      };
      expect(lookup).toThrow("[embed_fwd: id outside the vocabulary: 99]");
      new Uint32Array(ids.view()).set([3, 9, 1, 2]);
      lookup();
      for (const buffer of [table, ids, y]) buffer.free();
      device.close();
    });

    test("a measured operation has the GPU's time", () => {
      const device = Device.open("soft");
      const [x, w, y] = [device.buffer(65536, "x"), device.buffer(65536, "w"), device.buffer(65536, "y")];
      device.profile(true, catalogue.length);
      for (let i = 0; i < 3; i++)
        device.emit(gemmNt, {
          ...{ x: x.range(), w: w.range(), y: y.range(), bias: null },
          ...{ m: 128, n: 128, k: 128, dt: 0, ydt: 0, accumulate: 0 },
        });
      device.finish();
      const rows = device.profile(false, catalogue.length);
      const id = 1 + catalogue.findIndex(({ op }) => op.name === "gemm_nt");
      const [calls, ns, flops] = [...rows.slice(4 * id, 4 * id + 3)];
      expect(calls).toBe(3);
      expect(flops).toBe(3 * 2 * 128 ** 3);
      expect(ns).toBeGreaterThan(1e4);
      for (const buffer of [x, w, y]) buffer.free();
      device.close();
    });

    test("a command buffer that does not come back ends the wait with an error, not the program", () => {
      const { out, code } = script(
        `${PRODUCT}
      for (let i = 0; i < 20; i++) product();
      const start = performance.now();
      try { device.finish(); } catch (error) { console.log(error.message); }
      if (performance.now() - start > 20000) console.log("too slow");
      try { product(); device.finish(); } catch (error) { console.log("then: " + error.message); }
      process.exit(0);`,
        { RLV_METAL_TIMEOUT: "0.1", RLV_SOFT_THREADS: "1" },
      );
      expect(out).toMatch(/^\[gemm_nt m=512 n=512 k=512 .*\] no answer from the GPU for 0.1 s/);
      expect(out).toMatch(/then: .*lost/);
      expect(out).not.toContain("too slow");
      expect(code).toBe(0);
    }, 60_000);

    test("a long operation goes on in the next command buffer, with the same bits", () => {
      const body = `
      import { logprobBwd } from "${root}/src/ops/head.ts";
      const [rows, cols, vocab] = [300, 32, 9000];
      const of = (n, label) => device.buffer(n * 4, label);
      const x = of(rows * cols, "x"), w = of(9024 * cols, "w"), dx = of(rows * cols, "dx"), dw = of(9024 * cols, "dw");
      const row = () => of(rows, "row");
      const targets = row(), lse = row(), entropy = row(), dlogprob = row();
      const work = of(rows * cols + 256 * 4096, "work");
      const fill = (b, scale) => { const v = new Float32Array(b.view()); for (let i = 0; i < v.length; i++) v[i] = scale * Math.sin(i); };
      fill(x, 1); fill(w, 0.1); fill(dlogprob, 1); new Float32Array(lse.view()).fill(9.2);
      device.emit(logprobBwd, { dx: dx.range(), dw: dw.range(), x: x.range(), w: w.range(), targets: targets.range(),
        lse: lse.range(), entropy: entropy.range(), dlogprob: dlogprob.range(), dentropy: null, work: work.range(),
        rows, cols, vocab, inv_temp: 1, dt: 0 });
      device.finish();
      console.log(Bun.hash(dx.view()), Bun.hash(dw.view()), device.stats().batches);`;
      const whole = script(body);
      const split = script(body, { RLV_METAL_BATCH: "0.01" });
      expect(whole.err + split.err).toBe("");
      expect(whole.out.split(" ")).toHaveLength(3);
      expect(split.out).toBe(whole.out);
    });

    test("more threads than a pipeline allows is an error that says so", () => {
      const { out } = script(
        `${PRODUCT} product(); try { device.finish(); } catch (e) { console.log(e.message); }`,
        {
          RLV_SOFT_MAX_THREADS: "96",
        },
      );
      expect(out).toMatch(/gemm_nt.* needs 128 threads in a group, this GPU gives it 96/);
    });

    test("compiled pipelines are kept, and a damaged archive is made again", () => {
      const archives = () =>
        readdirSync(join(scratch, "rlv/metal")).filter((name) => name.endsWith(".binarchive"));
      const once = () =>
        script(`${PRODUCT} product(); device.finish(); device.close();`, { XDG_CACHE_HOME: scratch });
      expect(once().err).toBe("");
      expect(archives().length).toBe(1);
      const path = join(scratch, "rlv/metal", archives()[0]!);
      const before = Bun.file(path).lastModified;
      expect(once().err).toBe("");
      expect(Bun.file(path).lastModified).toBe(before);
      Bun.spawnSync(["truncate", "-s", "3", path]);
      expect(once().err).toBe("");
      expect(Bun.file(path).size).toBeGreaterThan(3);
    });

    test("nothing is left of a closed device", () => {
      const { out } = script(`${PRODUCT} product(); device.finish();
      for (const buffer of [x, w, y]) buffer.free();
      device.close();
      import { softCounters } from "${root}/src/device/lib.ts";
      console.log(softCounters().soft_live_objects());`);
      expect(out.trim()).toBe("0");
    });
  },
);

/** Software Metal names every misuse of its objects as Metal's validation does, and what is left of them. */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { resolve } from "node:path";

const program = resolve(import.meta.dir, "../../build/soft-misuse");

function run(name: string): { out: string; err: string; code: number } {
  const result = Bun.spawnSync([program, name]);
  return { out: result.stdout.toString(), err: result.stderr.toString(), code: result.exitCode };
}

const SAID: Readonly<Record<string, RegExp>> = {
  release_twice: /message to a deallocated object: -\[MTLBuffer release\]/,
  message_to_deallocated: /message to a deallocated object: -\[MTLBuffer length\]/,
  commit_with_open_encoder: /commit: an encoder of this command buffer has not ended/,
  encode_after_end: /dispatch.*after endEncoding/,
  two_encoders: /another encoder of this command buffer has not ended/,
  commit_twice: /commit: the command buffer is committed already/,
  wait_before_commit: /waitUntilCompleted.*not committed/,
  handler_after_commit: /addCompletedHandler: after commit/,
  no_pipeline: /no compute pipeline state/,
  long_bytes: /5000.*4096/,
  odd_offset: /offset 2 is not a multiple of 4/,
  offset_beyond: /offset 512 is beyond the buffer's 256/,
  index_beyond: /index 31 is beyond 30/,
  threadgroup_memory_odd: /24 is not a multiple of 16/,
  threadgroup_memory_missing: /'staged': missing threadgroup.* at index 0/,
  threadgroup_memory_large: /40000 bytes.*32768/,
  too_many_threads: /2048.*the pipeline allows 1024/,
  pipeline_freed_too_early: /pipeline of 'fill' is deallocated while a command buffer/,
};

describe.skipIf(!existsSync(program))("objects of software Metal (scripts/build-native --soft)", () => {
  for (const [name, said] of Object.entries(SAID))
    test(`${name} is named`, () => {
      const { err, code } = run(name);
      expect(err).toMatch(said);
      expect(code).not.toBe(0);
    });

  test("an autoreleased object without a pool is named, and lives on", () => {
    const { err, code } = run("no_pool");
    expect(err).toMatch(/autorelease.*pool/i);
    expect(code).toBe(0);
  });

  test("objects that nobody released are counted by class", () => {
    const { out, code } = run("leak");
    expect(code).toBe(0);
    expect(out).toBe("alive: 2 MTLBuffer\nalive: 1 MTLDevice\n");
  });

  test("nothing is left of what was used properly", () => {
    const { out, err, code } = run("no_leak");
    expect([out, err, code]).toEqual(["", "", 0]);
  });
});

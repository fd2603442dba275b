import { expect, test } from "bun:test";
import fc from "fast-check";
import { Device } from "../../src/device/device.ts";
import "../../src/ops/index.ts";
import { Arena, type Block } from "../../src/tape/arena.ts";

const device = Device.open("null");

test("live ranges never overlap, everything comes back, the peak is the most that was live", () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.boolean(), fc.nat(200_000), fc.nat(30)), { maxLength: 120 }),
      (steps) => {
        const arena = new Arena(device, "arena");
        const live: Block[] = [];
        let most = 0;
        for (const [allocate, bytes, pick] of steps) {
          if (allocate || live.length === 0) live.push(arena.alloc(bytes));
          else arena.free(live.splice(pick % live.length, 1)[0]!);
          const total = live.reduce((sum, b) => sum + b.bytes, 0);
          expect(arena.used).toBe(total);
          most = Math.max(most, total);
          for (const a of live)
            for (const b of live) {
              const apart =
                a.chunk !== b.chunk || a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
              expect(a === b || apart).toBe(true);
            }
        }
        expect(arena.peak).toBe(most);
        for (const b of live) arena.free(b);
        expect(arena.used).toBe(0);
        // All ranges have joined again: the largest possible request needs no new memory.
        const capacity = arena.capacity;
        if (capacity > 0) arena.free(arena.alloc(Math.min(capacity, 8 << 20)));
        expect(arena.capacity).toBe(capacity);
        arena.dispose();
      },
    ),
    { numRuns: 60 },
  );
});

test("a range freed twice is found", () => {
  const arena = new Arena(device, "arena");
  const block = arena.alloc(100);
  arena.alloc(100);
  arena.free(block);
  expect(() => arena.free(block)).toThrow("freed twice");
  arena.dispose();
});

test("host ranges come back only when the stream is idle", () => {
  const arena = new Arena(device, "host", { deferred: true });
  const first = arena.alloc(64);
  arena.free(first);
  expect(arena.alloc(64).offset).not.toBe(first.offset);
  arena.settle();
  expect(arena.alloc(64).offset).toBe(first.offset);
  arena.dispose();
});

test("a limit is kept", () => {
  const arena = new Arena(device, "limited", { limit: 1 << 20 });
  expect(() => arena.alloc(2 << 20)).toThrow("out of memory: asked 2097152 bytes");
  arena.dispose();
});

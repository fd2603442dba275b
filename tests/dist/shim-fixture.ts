/** One use of the MPI that RLV_MPI_LIBRARY names, as JSON: what was given and summed, or the error. */
import { mpiLaunch } from "../../src/core/env.ts";
import { errorLine, RanksError } from "../../src/core/errors.ts";
import { Device } from "../../src/device/device.ts";
import { Mpi } from "../../src/device/mpi.ts";
import { MpiRanks } from "../../src/run/mpi-ranks.ts";

const say = (value: unknown) => process.stdout.write(`${JSON.stringify(value)}\n`);

try {
  const mpi = Mpi.start(mpiLaunch());
  const ranks = await MpiRanks.join(mpi, "0-3");
  if (process.argv[2] === "refuse") {
    const thrown = await ranks
      .gather("work", () => Promise.reject(new RanksError("no", "here")))
      .catch((e) => e);
    say({ message: thrown.message, class: thrown.name, everywhere: ranks.isEverywhere(thrown) });
  } else {
    // Bytes of every kind of value, in one message and in none.
    const given = await ranks.gather("work", () => ({
      bits: Float32Array.of(-0, Number.NaN, 1e-45),
      none: null,
    }));
    const empty = await mpi.gather("empty", new Uint8Array(0), () => {});
    const device = Device.open("cpu", 1);
    const sums: Record<string, number[]> = {};
    for (const [name, dtype, size] of [
      ["float32", 0, 4],
      ["bfloat16", 1, 2],
    ] as const) {
      const buffer = device.buffer(64 * size, "values");
      const bytes = buffer.view(0, 64 * size);
      // bfloat16 has 8 bits: 1 + 1/128 is one of its values, and 256 + 1/2 is none.
      if (dtype === 0) new Float32Array(bytes).set(Array.from({ length: 64 }, (_, i) => i + 0.25));
      else new Uint16Array(bytes).set(Array.from({ length: 64 }, (_, i) => (i < 32 ? 0x4380 : 0x3f81)));
      await mpi.sum(bytes, dtype, () => {});
      sums[name] = dtype === 0 ? [...new Float32Array(bytes)] : [...new Uint16Array(bytes)];
    }
    await ranks.leave();
    say({
      library: mpi.library,
      rank: ranks.rank,
      count: ranks.count,
      ranks: ranks.describe(),
      neighbours: ranks.neighbours,
      given: given.map(({ bits }) => [...new Uint32Array(bits.buffer)]),
      empty: empty.map(({ length }) => length),
      sums,
    });
  }
} catch (error) {
  say({ error: errorLine(error), class: (error as Error).name });
}

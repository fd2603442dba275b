/** Processes that train together, by an MPI loaded at run time (metal/dist): bytes of all to all, and sums. */
import { environment, type Launch } from "../core/env.ts";
import { assert, DeviceError, RanksError } from "../core/errors.ts";
import { cString, lib, readText } from "./lib.ts";

/** A libmpi as it presents itself. */
export interface MpiLibrary {
  readonly library: string;
  readonly kind: "Open MPI" | "MPICH";
  readonly version: string;
}

/** Names of shared libraries; Homebrew's folders are none that the loader looks into. */
const NAMES: Readonly<Record<MpiLibrary["kind"], readonly string[]>> =
  process.platform === "darwin"
    ? {
        "Open MPI": [
          "libmpi.40.dylib",
          "/opt/homebrew/lib/libmpi.40.dylib",
          "/usr/local/lib/libmpi.40.dylib",
        ],
        MPICH: ["libmpi.12.dylib", "/opt/homebrew/lib/libmpi.12.dylib", "/usr/local/lib/libmpi.12.dylib"],
      }
    : { "Open MPI": ["libmpi.so.40"], MPICH: ["libmpich.so.12", "libmpi.so.12"] };
const ANY = process.platform === "darwin" ? "libmpi.dylib" : "libmpi.so";

function candidates(prefer: Launch["mpi"]): readonly string[] {
  const named = environment("RLV_MPI_LIBRARY");
  if (named) return [named];
  const [open, mpich] = [NAMES["Open MPI"], NAMES.MPICH];
  return prefer === "MPICH" ? [...mpich, ANY, ...open] : [...open, ...mpich, ANY];
}

const lastError = () => readText((out, n) => lib().rlv_mpi_error(out, n));

/** Loads the MPI library of this machine and initialises nothing; why there is none otherwise. */
export function loadMpi(prefer: Launch["mpi"] = null): MpiLibrary | { readonly missing: string } {
  const names = cString(candidates(prefer).join("\0"));
  if (lib().rlv_mpi_load(names, names.length) !== 0) return { missing: lastError() };
  const [library, kind, version] = readText((out, n) => lib().rlv_mpi_info(out, n)).split("\n");
  return { library: library!, kind: kind as MpiLibrary["kind"], version: version!.replace(/\s+/g, " ") };
}

/** Native code waits so long at a time; in between signals are served. */
const SLICE_MS = 50;
const LABEL_BYTES = 60;

/** An initialised MPI. One exchange at a time; after one that failed every other fails by the same error. */
export class Mpi {
  #failure: unknown = null;
  private constructor(
    readonly library: MpiLibrary,
    readonly rank: number,
    readonly ranks: number,
  ) {}

  static start(launch: Launch | null): Mpi {
    const library = loadMpi(launch?.mpi);
    if ("missing" in library)
      throw new DeviceError(
        `no MPI library can be loaded (${library.missing})`,
        "--mpi",
        "install Open MPI or MPICH, name its libmpi in RLV_MPI_LIBRARY, or set --mpi false",
      );
    const choose = "give srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH)";
    // Open MPI would end the process, with advice on how to compile it.
    if (launch && !launch.connects && library.kind === "Open MPI")
      throw new DeviceError(
        `srun started ${launch.processes} processes that cannot find each other`,
        library.library,
        `${choose}, or set --mpi false`,
      );
    const out = new Uint32Array(2);
    if (lib().rlv_mpi_start(out, out.length) !== 0) throw new DeviceError(lastError(), library.library);
    const [rank, ranks] = [out[0]!, out[1]!];
    const expected = launch?.processes ?? ranks;
    if (ranks !== expected)
      throw new DeviceError(
        `${expected} processes were started, ${library.version.split(",")[0]} sees ${ranks}`,
        library.library,
        `name the libmpi of this mpirun in RLV_MPI_LIBRARY; ${choose}`,
      );
    return new Mpi(library, rank, ranks);
  }

  /**
   * What every rank gives, by rank. All must be in the exchange of the same `label`. `waiting` is called about twenty
   * times a second and ends the exchange by throwing.
   */
  async gather(label: string, mine: Uint8Array, waiting: () => void): Promise<Uint8Array[]> {
    const head = new Uint8Array(4 + LABEL_BYTES);
    new DataView(head.buffer).setUint32(0, mine.length, true);
    new TextEncoder().encodeInto(label, head.subarray(4));
    const heads = await this.#exchange(head, new Uint32Array(this.ranks).fill(head.length), waiting);
    const labels = heads.map((h) => new TextDecoder().decode(h.subarray(4)).replace(/\0.*$/s, ""));
    const other = labels.findIndex((text) => text !== labels[0]);
    if (other > 0)
      throw new RanksError(
        "ranks are not at the same place",
        `rank 0 at ${labels[0]}, rank ${other} at ${labels[other]}`,
        "start all with one version of rlv and the same command",
      );
    const sizes = Uint32Array.from(heads, (h) => new DataView(h.buffer).getUint32(0, true));
    return this.#exchange(mine, sizes, waiting);
  }

  async #exchange(mine: Uint8Array, sizes: Uint32Array, waiting: () => void): Promise<Uint8Array[]> {
    // A typed array of length 0 has no address.
    const given = mine.length > 0 ? mine : new Uint8Array(1);
    this.#begun(lib().rlv_mpi_gather(given, mine.length, sizes, sizes.length));
    await this.#wait(waiting);
    let at = 0;
    return Array.from(sizes, (bytes) => {
      const part = new Uint8Array(bytes);
      if (bytes > 0) this.#begun(lib().rlv_mpi_take(part, at, bytes));
      at += bytes;
      return part;
    });
  }

  /** Replaces float32 (0) or bfloat16 (1) values in native memory by their sums over the ranks, in their order. */
  async sum(values: ArrayBuffer, dtype: 0 | 1, waiting: () => void): Promise<void> {
    const bytes = new Uint8Array(values);
    this.#begun(lib().rlv_mpi_sum(bytes, bytes.length, dtype));
    await this.#wait(waiting);
  }

  async #wait(waiting: () => void): Promise<void> {
    try {
      for (;;) {
        const state = lib().rlv_mpi_wait(SLICE_MS);
        if (state === 0) return;
        if (state === 2) throw new RanksError(lastError(), `rank ${this.rank}`);
        waiting();
        await Bun.sleep(0);
      }
    } catch (error) {
      this.#failure = error;
      throw error;
    }
  }

  #begun(status: number): void {
    if (this.#failure !== null) throw this.#failure;
    assert(status === 0, lastError());
  }

  /** Ends every process of the job. */
  abort(code: number): never {
    lib().rlv_mpi_abort(code);
    process.exit(code);
  }

  stop(): void {
    if (lib().rlv_mpi_stop() !== 0) throw new RanksError(lastError(), `rank ${this.rank}`);
  }
}

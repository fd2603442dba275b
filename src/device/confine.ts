import { assert, DeviceError } from "../core/errors.ts";
import { cString, lib, readText } from "./lib.ts";

/** A program and what it may use; see rlv_exec_confined in metal/include/rlv.h. */
export interface ConfinedProgram {
  /** The first is the path of the program. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly cpuSeconds: number;
  /** Bytes of private data. */
  readonly memory: number;
}

/** Becomes the program; what is returned from is a failure. */
export function execConfined({ argv, env, cpuSeconds, memory }: ConfinedProgram): never {
  const variables = Object.entries(env).map(([name, value]) => `${name}=${value}`);
  assert(![...argv, ...variables].some((word) => word.includes("\0")), "NUL in an argument");
  const words = cString([...argv, ...variables].join("\0"));
  const reason = readText((out, capacity) =>
    lib().rlv_exec_confined(
      words,
      argv.length,
      variables.length,
      process.ppid,
      Math.ceil(cpuSeconds),
      memory,
      out,
      capacity,
    ),
  );
  throw new DeviceError(`a program cannot be confined (${reason})`, argv[0]);
}

import { resolve } from "node:path";

/** Runs the program of this clone and shows what it says. */
export async function program(args: readonly string[]): Promise<void> {
  process.stdout.write(`\n$ rlv ${args.join(" ")}\n`);
  const child = Bun.spawn([resolve(import.meta.dir, "../rlv"), ...args], {
    stdio: ["ignore", "inherit", "inherit"],
  });
  if ((await child.exited) !== 0) throw new Error(`rlv ${args[0]} ended with ${child.exitCode}`);
}

/** The hidden command `__confine`: a process that gives up its rights and becomes the program its last argument names. */
import { writeSync } from "node:fs";
import { type ConfinedProgram, execConfined } from "../device/confine.ts";

const { mark, ...program } = JSON.parse(process.argv.at(-1)!) as ConfinedProgram & { readonly mark: string };
try {
  execConfined(program);
} catch (error) {
  writeSync(2, `${mark} ${(error as Error).message}\n`);
  process.exit(125);
}

import { join } from "node:path";
import { version } from "../../package.json";

/** The version of rlv, as package.json states it. */
export const VERSION: string = version;

/** True inside the single-file program that scripts/build makes. */
export const STANDALONE: boolean = Bun.isStandaloneExecutable;

/** The hidden command under which this program is started again as the engine process. */
export const ENGINE_COMMAND = "__engine";

/** The hidden command of the process that chats for the web page. */
export const CHAT_COMMAND = "__chat";

/** The hidden command under which training starts the server of the page. */
export const UI_COMMAND = "__ui";

/** The hidden command under which the server of the page starts this program to read runs for it. */
export const DATA_COMMAND = "__data";

/** The hidden command by which shells ask what may follow on a line. */
export const COMPLETE_COMMAND = "__complete";

/** Hidden commands of rewards: a program without rights, a module of the user's. */
export const CONFINE_COMMAND = "__confine";
export const MODULE_COMMAND = "__reward";
const ENTRIES = {
  [CONFINE_COMMAND]: "../reward/confine-main.ts",
  [MODULE_COMMAND]: "../reward/module-main.ts",
} as const;

/** argv of this very program as the child process of a reward: the standalone binary, or Bun with that one file. */
export function childArgv(command: keyof typeof ENTRIES): string[] {
  if (STANDALONE) return [process.execPath, command];
  return [process.execPath, join(import.meta.dir, ENTRIES[command])];
}

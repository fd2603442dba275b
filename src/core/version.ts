import { version } from "../../package.json";

/** The version of rlv, as package.json states it. */
export const VERSION: string = version;

/** True inside the single-file program that scripts/build makes: its modules live on a virtual file system. */
export const STANDALONE: boolean = import.meta.path.startsWith("/$bunfs/");

/** The hidden command under which this program is started again as the engine process. */
export const ENGINE_COMMAND = "__engine";

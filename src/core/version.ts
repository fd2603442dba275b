import { version } from "../../package.json";

/** The version of rlv, as package.json states it. */
export const VERSION: string = version;

/** True inside the single-file program that scripts/build makes. */
export const STANDALONE: boolean = Bun.isStandaloneExecutable;

/** The hidden command under which this program is started again as the engine process. */
export const ENGINE_COMMAND = "__engine";

/** The hidden command of the process that chats for the web page. */
export const CHAT_COMMAND = "__chat";

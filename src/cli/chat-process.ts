import { existsSync } from "node:fs";
import { UsageError } from "../core/errors.ts";
import { cachedModel, resolveModel } from "../recipe/base.ts";
import { serveChat } from "../run/chat/process.ts";
import { isBuiltin } from "./files.ts";

/** The hidden command `__chat`: the child process that chats for the web page. */
export function chatProcess(): void {
  serveChat(({ model, adapter }) => resolveModel(folderOf(model), adapter));
}

/** A page's click downloads nothing: a name on the hub means what its cache has. */
function folderOf(name: string): string {
  if (isBuiltin(name) || existsSync(name)) return name;
  const [cached] = cachedModel(name);
  if (cached !== undefined) return cached;
  throw new UsageError(
    "no such model here",
    name,
    `rlv download ${name} fetches it if it is a name on the hub`,
  );
}

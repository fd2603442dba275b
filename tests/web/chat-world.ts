import { cpSync, mkdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { writeCheckpoint } from "../../src/io/checkpoint-folder.ts";
import { servePage } from "../../src/web/serve.ts";
import { writeChatAdapter, writeChatDual, writeChatModel } from "../run/chat-world.ts";

export const program = [process.execPath, resolve(import.meta.dir, "../../src/cli/main.ts")];

/** Models, and a run that began with one of them and has checkpoints, in `folder`. */
export function chatWorld(folder: string) {
  const at = (name: string) => {
    const path = join(folder, name);
    mkdirSync(path, { recursive: true });
    return path;
  };
  const model = writeChatModel(at("model"));
  const slow = writeChatModel(at("slow"), 5, { max_position_embeddings: 8192, num_hidden_layers: 6 });
  const adapter = writeChatAdapter(at("adapter"), model, 1);
  const dual = writeChatDual(at("dual"), model, 3);
  const run = at("runs/lesson");
  writeFileSync(join(run, "train_config.json"), JSON.stringify({ recipe: "arithmetic", model_name: model }));
  writeFileSync(join(run, "metrics.jsonl"), "");
  for (const [name, from] of [
    ["step-10", adapter],
    ["final", adapter],
  ] as const)
    writeCheckpoint(join(run, "checkpoints"), name, (dir) => cpSync(from, dir, { recursive: true }));
  return { model, slow, adapter, dual, runs: join(folder, "runs") };
}

/** The server of the page with its chat, and a way to ask it. */
export function serveChat(world: ReturnType<typeof chatWorld>, autoload = false) {
  const server = servePage({
    ...{ host: "127.0.0.1", port: 0, folders: [world.runs], program },
    chat: {
      engine: { device: "cpu", threads: 1, dtype: "float32", max_length: 8192 },
      models: [
        { label: "plain", model: world.model, adapter: null },
        { label: "slow", model: world.slow, adapter: null },
        { label: "dual", model: world.model, adapter: world.dual },
      ],
      autoload,
      defaults: {
        ...{ temperature: 1, top_p: 1, top_k: 0, min_p: 0, max_new_tokens: 24, seed: 7 },
        ...{ system: null, thinking: null },
      },
    },
  });
  const base = `http://127.0.0.1:${server.port}`;
  const ask = (path: string, body?: unknown, headers: Record<string, string> = {}) =>
    fetch(`${base}${path}`, {
      headers: {
        authorization: `Bearer ${server.token}`,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...headers,
      },
      ...(body === undefined
        ? {}
        : { method: "POST", body: typeof body === "string" ? body : JSON.stringify(body) }),
    });
  return { server, base, ask };
}

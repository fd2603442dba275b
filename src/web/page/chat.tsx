import { useEffect, useRef, useState } from "preact/hooks";
import type { ChatModelEntry } from "../chat-api.ts";
import { ReplyView } from "./chat-reply.tsx";
import { ChatSettings, Scales } from "./chat-settings.tsx";
import {
  addColumn,
  type ChatState,
  type Column,
  canAdd,
  chat,
  type Exchange,
  edit,
  isRunning,
  jsonlOf,
  loadModels,
  markdownOf,
  nameOf,
  openColumn,
  regenerate,
  removeColumn,
  send,
  setModel,
  showModels,
  startAnew,
  stopAll,
} from "./chat-state.ts";
import { bytes, count } from "./format.ts";
import { useKeys } from "./keys.tsx";
import { copyText, Empty, Failure, Glyph, IconButton, Pending } from "./parts.tsx";
import { route, setQuery } from "./route.ts";
import { useStore } from "./store.ts";

/** A conversation with one model, or the same with several side by side. `#/chat?m=ID,ID` names them. */
export function ChatPage() {
  const state = useStore(chat);
  const [shade, setShade] = useState(false);
  const [settings, setSettings] = useState(false);
  const composer = useRef<HTMLTextAreaElement>(null);
  const end = useRef<HTMLDivElement>(null);
  const running = isRunning(state);
  useEffect(() => {
    void loadModels(route().query.m?.split(",").filter(Boolean) ?? []);
    composer.current?.focus();
  }, []);
  const models = state.columns.map(({ model }) => model).join(",");
  useEffect(() => {
    if (models !== "") setQuery({ m: models });
  }, [models]);
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.key === "Escape" && isRunning(chat.get())) stopAll();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
  useKeys({ "/": () => composer.current?.focus(), t: () => setShade((on) => !on) });
  const followed = useFollow(end, state);
  if (state.models === null) return <Pending error={state.failure} again={() => void loadModels([])} />;
  if (state.models.length === 0)
    return (
      <Empty title="There is nobody to talk to yet">
        <p>
          Checkpoints of finished and running trainings are listed here, and models named on the command line:
        </p>
        <code>rlv chat --web --model builtin:arithmetic</code>
      </Empty>
    );
  return (
    <div class="chat">
      <div class="toolbar">
        <Presets state={state} />
        <button type="button" disabled={!canAdd(state) || running} onClick={addColumn}>
          <Glyph name="plus" /> Model
        </button>
        <button type="button" aria-pressed={shade} onClick={() => setShade(!shade)} title="t">
          {shade ? "Plain text" : "Shade by surprise"}
        </button>
        <button type="button" aria-expanded={settings} onClick={() => setSettings(!settings)}>
          Settings
        </button>
        <span class="push" />
        <Export state={state} />
        <button type="button" disabled={state.exchanges.length === 0} onClick={startAnew}>
          New chat
        </button>
      </div>
      {settings ? <ChatSettings state={state} /> : null}
      <div class="columns">
        {state.columns.map((column) => (
          <ColumnHead key={column.key} state={state} column={column} busy={running} />
        ))}
      </div>
      <div class="exchanges" role="log" aria-label="conversation">
        {state.exchanges.map((exchange, index) => (
          <ExchangeView key={exchange.key} {...{ state, exchange, index, shade, running }} />
        ))}
      </div>
      <div ref={end} />
      <Composer input={composer} running={running} onSend={followed} />
    </div>
  );
}

/** Keeps the end in view while it grows, as long as the reader has not scrolled away from it. */
function useFollow(end: { readonly current: HTMLElement | null }, state: ChatState): () => void {
  const follow = useRef(true);
  useEffect(() => {
    const scrolled = () => {
      follow.current = innerHeight + scrollY > document.documentElement.scrollHeight - 120;
    };
    addEventListener("scroll", scrolled, { passive: true });
    return () => removeEventListener("scroll", scrolled);
  }, []);
  useEffect(() => {
    if (follow.current && state.exchanges.length > 0) end.current?.scrollIntoView({ block: "end" });
  }, [state.exchanges]);
  return () => {
    follow.current = true;
  };
}

/** Before and after: the model that a run began with beside its newest checkpoint. */
function Presets({ state }: { state: ChatState }) {
  const runs = new Map<string, { name: string; ids: [string, string] }>();
  for (const { run, base, id } of state.models ?? []) {
    if (run === null) continue;
    if (base) runs.set(run.id, { name: run.name, ids: [id, id] });
    else {
      const pair = runs.get(run.id);
      if (pair) pair.ids[1] = id;
    }
  }
  if (runs.size === 0) return null;
  return (
    <select
      aria-label="compare before and after"
      value=""
      disabled={isRunning(state)}
      onChange={(event) => {
        const chosen = runs.get(event.currentTarget.value);
        event.currentTarget.value = "";
        if (chosen) showModels(chosen.ids);
      }}
    >
      <option value="">Before and after…</option>
      {[...runs].map(([id, { name }]) => (
        <option key={id} value={id}>
          {name}
        </option>
      ))}
    </select>
  );
}

function Export({ state }: { state: ChatState }) {
  const none = state.exchanges.length === 0;
  return (
    <>
      <IconButton
        name="copy"
        label="Copy the conversation"
        onClick={() => void copyText(markdownOf(state), "conversation")}
      />
      <button type="button" disabled={none} onClick={() => download("chat.jsonl", jsonlOf(state))}>
        Export
      </button>
    </>
  );
}

function download(name: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function ColumnHead({ state, column, busy }: { state: ChatState; column: Column; busy: boolean }) {
  const { info, error, key } = column;
  const dot = { closed: "", opening: "waiting", ready: "finished", failed: "failed" }[column.state];
  const says = {
    closed: "opens with the first message",
    opening: "opening",
    ready: "ready",
    failed: "failed",
  };
  return (
    <section class="panel head" aria-label={nameOf(state, column.model)}>
      <div class="row">
        <i class={`dot ${dot}`} title={says[column.state]} />
        <ModelSelect state={state} column={column} busy={busy} />
        {state.columns.length > 1 ? (
          <IconButton name="close" label="Close this column" onClick={() => !busy && removeColumn(key)} />
        ) : null}
      </div>
      {error !== null ? <Failure error={new Error(error)} again={() => void openColumn(key)} /> : null}
      {info === null ? (
        error !== null ? null : (
          <p class="muted">
            {says[column.state]}{" "}
            {column.state === "closed" ? (
              <button type="button" class="link" onClick={() => void openColumn(key)}>
                open now
              </button>
            ) : null}
          </p>
        )
      ) : (
        <p class="muted">
          {info.architecture.replace(/ForCausalLM$/, "")}, {count(info.parameters)} parameters,{" "}
          {bytes(info.bytes)}, context {count(info.context)}, {info.device}
          {info.template ? "" : ", no chat template"}
        </p>
      )}
      {info !== null && column.scales !== null ? <Scales column={column} busy={busy} /> : null}
    </section>
  );
}

function ModelSelect({ state, column, busy }: { state: ChatState; column: Column; busy: boolean }) {
  const groups = new Map<string, ChatModelEntry[]>();
  for (const model of state.models ?? []) {
    const name = model.run?.name ?? "Command line";
    groups.set(name, [...(groups.get(name) ?? []), model]);
  }
  const taken = new Set(state.columns.map(({ model }) => model));
  return (
    <select
      aria-label="model"
      value={column.model}
      disabled={busy}
      onChange={(event) => setModel(column.key, event.currentTarget.value)}
    >
      {[...groups].map(([name, models]) => (
        <optgroup key={name} label={name}>
          {models.map(({ id, label }) => (
            <option key={id} value={id} disabled={taken.has(id) && id !== column.model}>
              {label}
            </option>
          ))}
        </optgroup>
      ))}
    </select>
  );
}

interface ExchangeProps {
  readonly state: ChatState;
  readonly exchange: Exchange;
  readonly index: number;
  readonly shade: boolean;
  readonly running: boolean;
}

function ExchangeView({ state, exchange, index, shade, running }: ExchangeProps) {
  const [draft, setDraft] = useState<string | null>(null);
  const { message, replies } = exchange;
  const commit = () => {
    if (draft !== null && draft.trim() !== "") edit(index, draft);
    setDraft(null);
  };
  return (
    <section class="exchange">
      <div class="asked">
        {draft === null ? (
          <>
            <div class="text">{message}</div>
            <button type="button" class="link" disabled={running} onClick={() => setDraft(message)}>
              edit
            </button>
          </>
        ) : (
          <>
            <textarea
              aria-label="edited message"
              value={draft}
              rows={Math.min(10, draft.split("\n").length + 1)}
              onInput={(event) => setDraft(event.currentTarget.value)}
              onKeyDown={(event) => {
                if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
                  event.preventDefault();
                  commit();
                } else if (event.key === "Escape") setDraft(null);
              }}
            />
            <button type="button" class="primary" onClick={commit}>
              Send
            </button>
            <button type="button" onClick={() => setDraft(null)}>
              Cancel
            </button>
          </>
        )}
      </div>
      <div class="columns">
        {state.columns.map(({ key }) => {
          const reply = replies[key];
          return reply === undefined ? (
            <div key={key} class="reply none">
              <button type="button" class="link" disabled={running} onClick={() => regenerate(index, key)}>
                ask this model too
              </button>
            </div>
          ) : (
            <ReplyView
              key={key}
              reply={reply}
              label={nameOf(state, reply.model)}
              shade={shade}
              index={index}
              column={key}
              locked={running}
            />
          );
        })}
      </div>
    </section>
  );
}

function Composer({
  input,
  running,
  onSend,
}: {
  input: { current: HTMLTextAreaElement | null };
  running: boolean;
  onSend: () => void;
}) {
  const [text, setText] = useState("");
  const commit = () => {
    if (running || text.trim() === "") return;
    onSend();
    send(text);
    setText("");
  };
  return (
    <form
      class="composer panel"
      onSubmit={(event) => {
        event.preventDefault();
        commit();
      }}
    >
      <textarea
        ref={input}
        aria-label="message"
        placeholder="Message"
        title="Enter sends, Shift+Enter breaks the line"
        value={text}
        rows={Math.max(1, Math.min(10, text.split("\n").length))}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            commit();
          }
        }}
      />
      {running ? (
        <button type="button" class="danger" onClick={stopAll}>
          Stop <kbd>Esc</kbd>
        </button>
      ) : (
        <button type="submit" class="primary" disabled={text.trim() === ""}>
          Send
        </button>
      )}
    </form>
  );
}

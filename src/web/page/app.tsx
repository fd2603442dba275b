import { useRef, useState } from "preact/hooks";
import { ChatPage } from "./chat.tsx";
import { Help, useKeys } from "./keys.tsx";
import { connection } from "./live.ts";
import { IconButton, Toasts } from "./parts.tsx";
import { go, hashOf, useRoute } from "./route.ts";
import { RunView } from "./run.tsx";
import { Runs } from "./runs.tsx";
import { useStore } from "./store.ts";
import { GroupedView, SweepView } from "./sweep.tsx";
import { nextTheme, themeChoice } from "./theme.ts";

function Connection() {
  const now = useStore(connection);
  const text = { connecting: "connecting", live: "following", lost: "reconnecting" }[now];
  const dot = { connecting: "waiting", live: "running", lost: "failed" }[now];
  return (
    <span class="connection" role="status" title={now === "lost" ? "the server does not answer" : undefined}>
      <i class={`dot ${dot}`} />
      <span>{text}</span>
    </span>
  );
}

function ThemeButton() {
  const choice = useStore(themeChoice);
  const glyph = { auto: "auto", light: "sun", dark: "moon" } as const;
  const name = { auto: "as the system", light: "light", dark: "dark" }[choice];
  return <IconButton name={glyph[choice]} label={`Colours: ${name} (d)`} onClick={nextTheme} />;
}

/** The views by the first part of the address. */
const TABS = [
  { path: "runs", name: "Runs" },
  { path: "chat", name: "Chat" },
] as const;
/** Views that the list of runs leads to. */
const OF_RUNS = ["run", "sweep", "grouped"];

export function App() {
  const { path } = useRoute();
  const [help, setHelp] = useState(false);
  const main = useRef<HTMLElement>(null);
  const leader = useRef(0);
  const view = path[0] ?? "runs";
  const second = (to: string) => () => {
    if (performance.now() - leader.current < 1200) go([to]);
  };
  useKeys({
    "?": () => setHelp((shown) => !shown),
    d: nextTheme,
    g: () => {
      leader.current = performance.now();
    },
    r: second("runs"),
    c: second("chat"),
  });
  return (
    <>
      <button type="button" class="skip" onClick={() => main.current?.focus()}>
        to the content
      </button>
      <header class="top">
        <a class="brand" href={hashOf(["runs"])} aria-label="rlv: list of runs">
          <svg viewBox="0 0 16 16" aria-hidden="true">
            <rect width="16" height="16" rx="4" class="mark" />
            <path d="M3 11.5 6.2 7.6l2.6 2L13 4.5" />
          </svg>
          rlv
        </a>
        <nav aria-label="views">
          {TABS.map(({ path: to, name }) => (
            <a
              key={to}
              href={hashOf([to])}
              aria-current={view === to || (to === "runs" && OF_RUNS.includes(view)) ? "page" : undefined}
            >
              {name}
            </a>
          ))}
        </nav>
        <div class="end">
          <Connection />
          <ThemeButton />
          <IconButton name="help" label="Keyboard (?)" onClick={() => setHelp(true)} />
        </div>
      </header>
      <main id="main" ref={main} tabIndex={-1}>
        {view === "run" && path[1] ? (
          <RunView key={path[1]} id={path[1]} tab={path[2] ?? "curves"} rest={path.slice(3)} />
        ) : view === "sweep" && path[1] ? (
          <SweepView key={path[1]} id={path[1]} />
        ) : view === "grouped" ? (
          <GroupedView />
        ) : view === "runs" ? (
          <Runs />
        ) : view === "chat" ? (
          <ChatPage />
        ) : (
          <div class="empty-state">
            <h3>There is no such view</h3>
            <a class="link" href={hashOf(["runs"])}>
              to the list of runs
            </a>
          </div>
        )}
      </main>
      <Toasts />
      {help ? <Help onClose={() => setHelp(false)} /> : null}
    </>
  );
}

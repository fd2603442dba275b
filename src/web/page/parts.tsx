import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import type { RunState, RunSummary } from "../api.ts";
import { count } from "./format.ts";
import { setQuery } from "./route.ts";
import { store, useStore } from "./store.ts";
import { seriesName } from "./theme.ts";

const GLYPHS = {
  search: "M7 12A5 5 0 1 0 7 2a5 5 0 0 0 0 10ZM10.7 10.7 14 14",
  sun: "M8 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6ZM8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1",
  moon: "M13.5 9.6A6 6 0 1 1 6.4 2.5a4.8 4.8 0 0 0 7.1 7.1Z",
  auto: "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12ZM8 2v12",
  help: "M5.8 6a2.2 2.2 0 1 1 3.2 2c-.7.4-1 .8-1 1.6M8 12.4v.1",
  star: "M8 1.8l1.9 4 4.3.6-3.1 3 .7 4.3L8 11.6l-3.8 2.1.7-4.3-3.1-3 4.3-.6Z",
  grow: "M9.5 2H14v4.5M6.5 14H2V9.5M14 2 9.5 6.5M2 14l4.5-4.5",
  shrink: "M14 6.5H9.5V2M2 9.5h4.5V14M9.5 6.5 14 2M6.5 9.5 2 14",
  flag: "M3.5 14.5V2.2M3.5 2.5h8.7l-2 3 2 3H3.5",
  close: "M4 4l8 8M12 4l-8 8",
  copy: "M5.5 5.5V2.5h8v8h-3M2.5 5.5h8v8h-8Z",
  left: "M10 3 5 8l5 5",
  right: "M6 3l5 5-5 5",
  alarm: "M8 1.8 15 14H1ZM8 6v4M8 12v.1",
  check: "M3 8.5 6.5 12 13 4.5",
  chat: "M2 3h12v8H7l-3 3v-3H2Z",
  trash: "M3 4.5h10M6 4.5V2.5h4v2M4.5 4.5l.6 9h5.8l.6-9",
  play: "M4.5 2.5 13 8l-8.5 5.5Z",
  plus: "M8 3v10M3 8h10",
  again: "M13 3v3.5H9.5M12.7 6.2A5.2 5.2 0 1 0 13.2 9",
} as const;
type GlyphName = keyof typeof GLYPHS;

export function Glyph({ name, filled = false }: { name: GlyphName; filled?: boolean }) {
  return (
    <svg class={`glyph${filled ? " filled" : ""}`} viewBox="0 0 16 16" aria-hidden="true">
      <path d={GLYPHS[name]} />
    </svg>
  );
}

interface IconButtonProps {
  readonly name: GlyphName;
  readonly label: string;
  readonly on?: boolean;
  readonly pressed?: boolean;
  readonly onClick: (event: MouseEvent) => void;
}

export function IconButton({ name, label, on = false, pressed, onClick }: IconButtonProps) {
  return (
    <button
      type="button"
      class={`icon${on ? " on" : ""}`}
      title={label}
      aria-label={label}
      aria-pressed={pressed}
      onClick={onClick}
    >
      <Glyph name={name} filled={on && name === "star"} />
    </button>
  );
}

interface Choice<T extends string> {
  readonly id: T;
  readonly name: string;
  readonly help?: string;
}

/** A few exclusive choices side by side. */
export function Segments<T extends string>({
  label,
  choices,
  value,
  onChange,
}: {
  label: string;
  choices: readonly Choice<T>[];
  value: T;
  onChange: (next: T) => void;
}) {
  return (
    // biome-ignore lint/a11y/useSemanticElements: a fieldset cannot be laid out inline everywhere
    <div class="segments" role="group" aria-label={label}>
      {choices.map(({ id, name, help }) => (
        <button type="button" key={id} title={help} aria-pressed={id === value} onClick={() => onChange(id)}>
          {name}
        </button>
      ))}
    </div>
  );
}

type ShownState = RunState | "waiting";
const STATES: Readonly<Record<ShownState, { dot: string; tag: string }>> = {
  live: { dot: "running", tag: "good" },
  finished: { dot: "finished", tag: "" },
  interrupted: { dot: "interrupted", tag: "warn" },
  crashed: { dot: "crashed", tag: "bad" },
  diverged: { dot: "diverged", tag: "bad" },
  waiting: { dot: "", tag: "" },
};

export function StateDot({ state }: { state: ShownState }) {
  return <i class={`dot ${STATES[state].dot}`} role="img" aria-label={state} title={state} />;
}

export const StateTag = ({ state }: { state: RunState }) => (
  <span class={`tag ${STATES[state].tag}`}>{state}</span>
);

export const Progress = ({ run }: { run: RunSummary }) => (
  <Fraction done={run.step} total={run.total_steps} />
);

/** How many of how many, in figures and as a bar; of a `total` that is not known, the figure alone. */
export function Fraction({ done, total, what = "" }: { done: number; total: number | null; what?: string }) {
  return (
    <span class="progress">
      <span class="num">
        {count(done)}
        {total === null ? "" : <span class="muted">{` / ${count(total)}${what}`}</span>}
      </span>
      {total === null ? null : <Bar share={total === 0 ? 0 : done / total} />}
    </span>
  );
}

export function Bar({ share, kind = "" }: { share: number; kind?: string }) {
  return (
    <span class={`bar ${kind}`} aria-hidden="true">
      <i style={{ width: `${(100 * Math.max(0, Math.min(1, share))).toFixed(1)}%` }} />
    </span>
  );
}

/** The sign of a series: of a line, or of single points. */
export function Swatch({ colour, style = "line" }: { colour: number; style?: "line" | "points" }) {
  return <i class={`swatch ${style}`} style={{ "--series": `var(--${seriesName(colour)})` }} />;
}

interface FigureProps {
  readonly name: string;
  readonly value: ComponentChildren;
  /** Told under the pointer. */
  readonly help?: string;
  readonly wide?: boolean;
  /** Below the value. */
  readonly children?: ComponentChildren;
}

/** One of the figures of a `dl`. */
export function Figure({ name, value, help, wide = false, children }: FigureProps) {
  return (
    <div class={`figure${wide ? " wide" : ""}`} title={help}>
      <dt>{name}</dt>
      <dd>{wide ? value : <b>{value}</b>}</dd>
      {children}
    </div>
  );
}

export type Level = "good" | "note" | "warn" | "bad";

/** What figures say, with the figures that say it. */
export function Finding({
  level,
  title,
  children,
}: {
  level: Level;
  title: string;
  children: ComponentChildren;
}) {
  return (
    <div class={`finding ${level}`} role={level === "warn" || level === "bad" ? "alert" : undefined}>
      <Glyph name={level === "good" ? "check" : level === "note" ? "help" : "alarm"} />
      <div>
        <h3>{title}</h3>
        {children}
      </div>
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty-state">
      <h3>{title}</h3>
      {children}
    </div>
  );
}

export function Failure({ error, again }: { error: Error; again?: (() => void) | undefined }) {
  return (
    <div class="notice error" role="alert">
      <Glyph name="alarm" /> <span>{error.message}</span>
      {again === undefined ? null : (
        <button type="button" class="link" onClick={again}>
          try again
        </button>
      )}
    </div>
  );
}

const Skeleton = () => <div class="skeleton" role="status" aria-label="loading" />;

/** What stands in the place of an answer that is not there: its error, or that it is on its way. */
export function Pending({ error, again }: { error: Error | null; again?: () => void }) {
  return error === null ? <Skeleton /> : <Failure error={error} again={again} />;
}

const toast = store<{ readonly text: string; readonly at: number } | null>(null);

export function say(text: string): void {
  const at = performance.now();
  toast.set({ text, at });
  setTimeout(() => {
    if (toast.get()?.at === at) toast.set(null);
  }, 3500);
}

export function Toasts() {
  const shown = useStore(toast);
  return (
    <div class="toasts" role="status">
      {shown === null ? null : <div class="toast">{shown.text}</div>}
    </div>
  );
}

/** A modal dialog of the browser's own: it keeps the focus and closes by Escape. */
export function Dialog({
  title,
  onClose,
  children,
}: {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
}) {
  const host = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const element = host.current!;
    element.showModal();
    return () => element.close();
  }, []);
  return (
    // biome-ignore lint/a11y/useKeyWithClickEvents: Escape closes it, the click is on its backdrop
    <dialog
      ref={host}
      aria-label={title}
      onClose={onClose}
      onClick={(event) => {
        if (event.target === host.current) host.current?.close();
      }}
    >
      <h2>{title}</h2>
      {children}
    </dialog>
  );
}

export async function copyText(text: string, what: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied`);
  } catch {
    say("the browser refused to copy");
  }
}

/** True while the keys that are typed belong to a field. */
export function typing(event: KeyboardEvent): boolean {
  const element = event.target as HTMLElement;
  return (
    element.isContentEditable ||
    /^(?:INPUT|TEXTAREA|SELECT)$/.test(element.tagName) ||
    document.querySelector("dialog[open]") !== null
  );
}

/** Which metrics are shown: part of their names, kept in the address. */
export function MetricSearch({ value }: { value: string }) {
  return (
    <input
      type="search"
      class="push"
      placeholder="Find a metric"
      aria-label="Find a metric"
      value={value}
      onInput={(event) => setQuery({ metric: event.currentTarget.value })}
    />
  );
}

/** How much of a curve's past its smoothed values carry on: 0 to 0.99. */
export function Smoothing({ value, onChange }: { value: number; onChange: (value: number) => void }) {
  return (
    <label class="field smoothing">
      Smoothing
      <input
        type="range"
        min="0"
        max="0.99"
        step="0.01"
        value={value}
        onInput={(event) => onChange(event.currentTarget.valueAsNumber)}
      />
      <b class="num">{value.toFixed(2)}</b>
    </label>
  );
}

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { RolloutPage, RolloutRowLight, RolloutTable, RunSummary } from "../api.ts";
import { ask, queryOf, runPath } from "./client.ts";
import { count, figure, percent, signed } from "./format.ts";
import { useKeys } from "./keys.tsx";
import { rolloutCounts } from "./live.ts";
import { Empty, Failure, Glyph, Segments } from "./parts.tsx";
import { RolloutPanel } from "./rollout.tsx";
import { go, setQuery, useRoute } from "./route.ts";
import { useStore } from "./store.ts";
import { Visible } from "./tokens.tsx";
import { VirtualList } from "./virtual.tsx";

const PAGE = 200;
const ROW = 54;

/** Parts of the address that say which rollouts are wanted; the names are the server's. */
const FILTERS = [
  "table",
  "mode",
  "step_min",
  "step_max",
  "reward_min",
  "reward_max",
  "advantage_sign",
  "flagged",
  "finish",
  "prompt_index",
  "search",
  "sort",
  "order",
] as const;

type Query = Readonly<Record<string, string>>;
const filtersOf = (query: Query): Query =>
  Object.fromEntries(FILTERS.flatMap((name) => (query[name] ? [[name, query[name]]] : [])));

interface Loaded {
  readonly filters: string;
  readonly rows: readonly RolloutRowLight[];
  readonly first: RolloutPage;
}

/** The rows that match, loaded as far as one has scrolled. */
function useRollouts(id: string, filters: Query, round: number, there: boolean) {
  const path = (offset: number, upto?: number) =>
    runPath(id, `/rollouts${queryOf({ ...filters, offset, limit: PAGE, upto })}`);
  const key = path(0);
  const [loaded, setLoaded] = useState<Loaded | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [loading, setLoading] = useState(true);
  const more = useRef(false);
  useEffect(() => {
    if (!there) return;
    const stop = new AbortController();
    setLoading(true);
    more.current = false;
    ask<RolloutPage>(key, { signal: stop.signal }).then(
      (first) => {
        setLoaded({ filters: key, rows: first.rows, first });
        setError(null);
        setLoading(false);
      },
      (failed: Error) => {
        if (stop.signal.aborted) return;
        setError(failed);
        setLoading(false);
      },
    );
    return () => stop.abort();
  }, [key, round, there]);

  async function loadMore(): Promise<void> {
    if (more.current || loaded === null || loaded.filters !== key) return;
    more.current = true;
    try {
      const next = await ask<RolloutPage>(path(loaded.rows.length, loaded.first.last_row));
      setLoaded((now) => (now === loaded ? { ...now, rows: [...now.rows, ...next.rows] } : now));
    } catch (failed) {
      setError(failed as Error);
    } finally {
      more.current = false;
    }
  }
  return { loaded, error, loading, loadMore: () => void loadMore() };
}

/** The rollout's address within its run: evaluations of several modes share keys. */
export const idOf = (row: RolloutRowLight): string => (row.mode === "" ? row.key : `${row.key}.${row.mode}`);

interface TabProps {
  readonly run: RunSummary;
  /** Whether the run keeps any; null: not known yet. */
  readonly rollouts: boolean | null;
  /** KEY or KEY.MODE. */
  readonly selected: string | null;
}

export function RolloutsTab({ run, rollouts, selected }: TabProps) {
  const { query } = useRoute();
  const filters = useMemo(() => filtersOf(query), [JSON.stringify(filtersOf(query))]);
  const [round, setRound] = useState(0);
  const { loaded, error, loading, loadMore } = useRollouts(run.id, filters, round, rollouts !== false);
  const search = useRef<HTMLInputElement>(null);
  const now = useStore(rolloutCounts)[run.id];
  const table: RolloutTable = query.table === "eval" ? "eval" : "train";
  const rows = loaded?.rows ?? [];
  const at = selected === null ? -1 : rows.findIndex((row) => idOf(row) === selected);
  const fresh = loaded === null || now === undefined ? 0 : now[table] - loaded.first.all;

  const open = (row: RolloutRowLight | undefined) => {
    if (row !== undefined) go(["run", run.id, "rollouts", idOf(row)], query);
  };
  const move = (by: number) => open(rows[Math.max(0, Math.min(rows.length - 1, at + by))]);
  useKeys({
    j: () => move(1),
    k: () => move(-1),
    "/": () => search.current?.focus(),
    Escape: () => go(["run", run.id, "rollouts"], query),
  });

  if (rollouts === false || (loaded?.first.all === 0 && Object.keys(filters).length === 0))
    return (
      <Empty title="No rollouts yet">
        <p>
          {run.state !== "live"
            ? "This run kept none: it was trained with --save_rollouts false, or its recipe draws no completions."
            : "They are written with the steps of the run and show up here by themselves."}
        </p>
      </Empty>
    );
  return (
    <div class={`rollouts${selected === null ? "" : " with-detail"}`}>
      <section class="panel list" aria-label="Rollouts">
        <Filters query={query} page={loaded?.first ?? null} search={search} />
        {error === null ? null : <Failure error={error} />}
        <div class="found" role="status" data-loading={loading ? "1" : undefined}>
          {loaded === null ? (
            "reading"
          ) : (
            <>
              <span>
                <b class="num">{count(loaded.first.total)}</b>
                {loaded.first.total === loaded.first.all ? " rollouts" : ` of ${count(loaded.first.all)}`}
              </span>
              {loaded.first.mean_reward === null ? null : (
                <span>
                  mean reward <b class="num">{figure(loaded.first.mean_reward, 3)}</b>
                </span>
              )}
              <Histogram page={loaded.first} />
              {fresh > 0 ? (
                <button type="button" class="link" onClick={() => setRound(round + 1)}>
                  {count(fresh)} new
                </button>
              ) : null}
            </>
          )}
        </div>
        {loaded !== null && rows.length === 0 ? (
          <Empty title="No rollout matches">
            <button
              type="button"
              onClick={() => setQuery(Object.fromEntries(FILTERS.map((name) => [name, null])))}
            >
              show all
            </button>
          </Empty>
        ) : (
          <VirtualList
            items={rows}
            total={loaded?.first.total ?? 0}
            rowHeight={ROW}
            keyOf={idOf}
            onNear={loadMore}
            at={at}
            label="Rollouts, newest first"
            activeId={at < 0 ? undefined : "chosen-rollout"}
            onKeyDown={(event) => {
              if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
              event.preventDefault();
              move(event.key === "ArrowDown" ? 1 : -1);
            }}
            row={(row) => <Row row={row} chosen={idOf(row) === selected} onOpen={() => open(row)} />}
          />
        )}
      </section>
      {selected === null ? (
        <section class="panel nothing">
          <Empty title="Choose a rollout">
            <p>
              Its prompt, its group side by side and every token with its probability appear here.{" "}
              <kbd>j</kbd> and <kbd>k</kbd> walk along the list.
            </p>
          </Empty>
        </section>
      ) : (
        <RolloutPanel key={run.id} run={run} id={selected} table={table} />
      )}
    </div>
  );
}

function Row({ row, chosen, onOpen }: { row: RolloutRowLight; chosen: boolean; onOpen: () => void }) {
  const share = row.advantage === null ? 0 : Math.min(1, Math.abs(row.advantage) / 2);
  return (
    // biome-ignore lint/a11y/useKeyWithClickEvents: the list takes the keys for all its options
    <div
      class="rollout-row"
      role="option"
      tabIndex={-1}
      aria-selected={chosen}
      id={chosen ? "chosen-rollout" : undefined}
      onClick={onOpen}
    >
      <span class="at num">
        {row.step}
        {row.mode === "" ? null : <small>{row.mode}</small>}
      </span>
      <span class="texts">
        <span class="completion">
          {row.flagged === true ? (
            <span class="bad" title="flagged by a detector">
              <Glyph name="flag" />
            </span>
          ) : null}
          {row.completion === "" ? <em>empty</em> : <Visible text={row.completion.replaceAll("\n", " ⏎ ")} />}
          {row.finish === "length" ? (
            <span class="cut" title="cut at the longest length">
              …
            </span>
          ) : null}
        </span>
        <span class="prompt">
          <Visible text={row.prompt.replaceAll("\n", " ")} />
        </span>
      </span>
      <span class="scores num">
        <b>{figure(row.reward, 3)}</b>
        {row.advantage === null ? null : (
          <span
            class={`advantage ${row.advantage >= 0 ? "up" : "down"}`}
            title={`advantage ${signed(row.advantage)}`}
          >
            <i style={{ width: `${(50 * share).toFixed(0)}%` }} />
          </span>
        )}
      </span>
    </div>
  );
}

/** How often which reward: a bar for each part of the range. */
function Histogram({ page }: { page: RolloutPage }) {
  const { histogram } = page;
  if (histogram === null || histogram.counts.length < 2) return null;
  const most = Math.max(...histogram.counts);
  const width = 100 / histogram.counts.length;
  const { min, max } = histogram.range;
  return (
    <svg
      class="histogram"
      viewBox="0 0 100 20"
      preserveAspectRatio="none"
      role="img"
      aria-label={`rewards from ${figure(min, 3)} to ${figure(max, 3)}, ${histogram.counts.join(", ")}`}
    >
      <title>{`rewards from ${figure(min, 3)} to ${figure(max, 3)}`}</title>
      {histogram.counts.map((each, index) => {
        const height = each === 0 ? 0 : Math.max(1, (19 * each) / most);
        return (
          <rect
            key={index}
            x={index * width + 0.3}
            y={20 - height}
            width={Math.max(0.5, width - 0.6)}
            height={height}
          >
            <title>{`${count(each)} (${percent(each / Math.max(1, page.total))})`}</title>
          </rect>
        );
      })}
    </svg>
  );
}

interface FilterProps {
  readonly query: Query;
  readonly page: RolloutPage | null;
  readonly search: { current: HTMLInputElement | null };
}

/** Milliseconds after the last key until the server is asked. */
const PAUSE = 120;

function Filters({ query, page, search }: FilterProps) {
  const extent = page?.extent ?? null;
  const evaluation = query.table === "eval";
  const chosen = FILTERS.filter(
    (name) => query[name] && name !== "table" && name !== "sort" && name !== "order",
  );
  return (
    <div class="filters">
      <div class="toolbar">
        <Segments
          label="Table"
          choices={[
            { id: "train", name: "Training" },
            { id: "eval", name: "Evaluation" },
          ]}
          value={evaluation ? "eval" : "train"}
          onChange={(table) =>
            setQuery({
              table: table === "train" ? null : table,
              mode: null,
              advantage_sign: null,
              flagged: null,
            })
          }
        />
        <Typed
          name="search"
          type="search"
          placeholder="Search prompts and completions"
          label="Search prompts and completions"
          query={query}
          field={search}
          class="grow"
        />
      </div>
      <div class="toolbar small">
        <span class="field">
          step
          <Typed
            name="step_min"
            label="first step"
            placeholder={extentText(extent?.step.min)}
            query={query}
          />
          –
          <Typed name="step_max" label="last step" placeholder={extentText(extent?.step.max)} query={query} />
        </span>
        <span class="field">
          reward
          <Typed
            name="reward_min"
            label="least reward"
            placeholder={extentText(extent?.reward.min)}
            query={query}
          />
          –
          <Typed
            name="reward_max"
            label="greatest reward"
            placeholder={extentText(extent?.reward.max)}
            query={query}
          />
        </span>
        {evaluation ? (
          extent === null || extent.modes.length < 2 ? null : (
            <Select
              name="mode"
              label="mode"
              query={query}
              options={[["", "every mode"], ...extent.modes.map((mode) => [mode, mode] as const)]}
            />
          )
        ) : (
          <Segments
            label="Advantage"
            choices={[
              { id: "", name: "±", help: "every advantage" },
              { id: "1", name: "+", help: "better than the group" },
              { id: "0", name: "0", help: "no advantage" },
              { id: "-1", name: "−", help: "worse than the group" },
            ]}
            value={query.advantage_sign ?? ""}
            onChange={(sign) => setQuery({ advantage_sign: sign })}
          />
        )}
        {extent !== null && extent.finishes.length > 1 ? (
          <Select
            name="finish"
            label="end"
            query={query}
            options={[
              ["", "every end"],
              ...extent.finishes.map((finish) => [finish, `ends by ${finish}`] as const),
            ]}
          />
        ) : null}
        {extent !== null && extent.flagged > 0 ? (
          <button
            type="button"
            aria-pressed={query.flagged === "yes"}
            class={query.flagged === "yes" ? "on" : ""}
            onClick={() => setQuery({ flagged: query.flagged === "yes" ? null : "yes" })}
          >
            <Glyph name="flag" /> flagged {count(extent.flagged)}
          </button>
        ) : null}
        <Select
          name="sort"
          label="order"
          query={query}
          options={[
            ["", "newest"],
            ["reward", "by reward"],
            ...(evaluation ? [] : [["advantage", "by advantage"] as const]),
            ["length", "by length"],
            ["prompt", "by prompt"],
          ]}
        />
        {query.sort ? (
          <button
            type="button"
            class="plain"
            title="turn the order round"
            onClick={() => setQuery({ order: query.order === "asc" ? null : "asc" })}
          >
            {query.order === "asc" ? "least first" : "greatest first"}
          </button>
        ) : null}
        {chosen.length === 0 ? null : (
          <button
            type="button"
            class="link"
            onClick={() => setQuery(Object.fromEntries(chosen.map((name) => [name, null])))}
          >
            clear filters
          </button>
        )}
      </div>
    </div>
  );
}

const extentText = (value: number | undefined): string =>
  value === undefined ? "" : Number.isInteger(value) ? String(value) : figure(value, 2);

interface TypedProps {
  readonly name: string;
  readonly label: string;
  readonly placeholder: string;
  readonly query: Query;
  readonly type?: "text" | "search";
  readonly field?: { current: HTMLInputElement | null };
  readonly class?: string;
}

/** A field of the address that is typed: taken over when the typing pauses. */
function Typed({ name, label, placeholder, query, type = "text", field, class: extra = "" }: TypedProps) {
  const timer = useRef<ReturnType<typeof setTimeout>>();
  const own = useRef<HTMLInputElement>(null);
  const box = field ?? own;
  const taken = useRef(query[name] ?? "");
  useEffect(() => {
    const now = query[name] ?? "";
    // Another view was chosen while this was typed in.
    if (box.current && now !== taken.current) box.current.value = now;
    taken.current = now;
    return () => clearTimeout(timer.current);
  }, [query[name]]);
  const take = () => {
    clearTimeout(timer.current);
    // A field that goes away with the focus says for the last time that it has changed.
    const text = box.current?.value.trim();
    if (text === undefined || text === taken.current) return;
    // A number that is not one yet ("-") is not asked for.
    if (type === "text" && text !== "" && !Number.isFinite(Number(text))) return;
    taken.current = text;
    setQuery({ [name]: text });
  };
  return (
    <input
      ref={box}
      type={type}
      class={extra}
      inputMode={type === "text" ? "decimal" : "search"}
      aria-label={label}
      placeholder={placeholder}
      defaultValue={query[name] ?? ""}
      onInput={() => {
        clearTimeout(timer.current);
        timer.current = setTimeout(take, PAUSE);
      }}
      onChange={take}
      onKeyDown={(event) => {
        if (event.key !== "Escape") return;
        // Left as it is: a browser would empty a search field.
        event.preventDefault();
        event.currentTarget.blur();
      }}
    />
  );
}

interface SelectProps {
  readonly name: string;
  readonly label: string;
  readonly query: Query;
  readonly options: readonly (readonly [string, string])[];
}

function Select({ name, label, query, options }: SelectProps) {
  return (
    <select
      aria-label={label}
      value={query[name] ?? ""}
      onChange={(event) => setQuery({ [name]: event.currentTarget.value })}
    >
      {options.map(([id, text]) => (
        <option key={id} value={id}>
          {text}
        </option>
      ))}
    </select>
  );
}

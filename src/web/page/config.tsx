import { useState } from "preact/hooks";
import type { ConfigComparison, RunDetail } from "../api.ts";
import { type Answer, queryOf, useAnswer } from "./client.ts";
import type { Shown } from "./curves.tsx";
import { copyText, Empty, Pending, Segments, Swatch } from "./parts.tsx";

const text = (value: unknown): string =>
  value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);

/** The settings of a run; beside another run's where one is compared. */
export function ConfigTab({ detail, shown }: { detail: Answer<RunDetail>; shown: readonly Shown[] }) {
  const [search, setSearch] = useState("");
  const others = shown.slice(1);
  const [index, setIndex] = useState(0);
  const other = others[Math.min(index, others.length - 1)];
  if (detail.data === null) return <Pending error={detail.error} again={detail.again} />;
  const { data } = detail;
  const field = (
    <input
      type="search"
      placeholder="Find a setting"
      aria-label="Find a setting"
      value={search}
      onInput={(event) => setSearch(event.currentTarget.value)}
    />
  );
  if (other !== undefined)
    return (
      <>
        {others.length < 2 ? null : (
          <Segments
            label="Compared with"
            choices={others.map(({ run }, at) => ({ id: String(at), name: run.name }))}
            value={String(others.indexOf(other))}
            onChange={(at) => setIndex(Number(at))}
          />
        )}
        <Difference a={shown[0]!} b={other} search={search} field={field} />
      </>
    );
  if (data.config === null) return <Empty title="The settings of this run cannot be read" />;
  const rows = Object.entries(data.config).filter(([key, value]) => found(key, [value], search));
  return (
    <div class="panel">
      <div class="toolbar pad">
        <h2>Settings</h2>
        {field}
        <button
          type="button"
          class="push"
          onClick={() => void copyText(JSON.stringify(data.config, null, 2), "settings")}
        >
          Copy
        </button>
      </div>
      {rows.length === 0 ? <Empty title="No setting matches" /> : null}
      <table class="settings">
        <tbody>
          {rows.map(([key, value]) => (
            <tr key={key}>
              <th scope="row">{key}</th>
              <td class="mono">{text(value)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const found = (key: string, values: readonly unknown[], search: string): boolean =>
  [key, ...values.map(text)].join(" ").toLowerCase().includes(search.toLowerCase());

interface DifferenceProps {
  readonly a: Shown;
  readonly b: Shown;
  readonly search: string;
  readonly field: preact.JSX.Element;
}

function Difference({ a, b, search, field }: DifferenceProps) {
  const [all, setAll] = useState(false);
  const { data, error, again } = useAnswer<ConfigComparison>(
    `/api/compare${queryOf({ a: a.run.id, b: b.run.id })}`,
  );
  if (data === null) return <Pending error={error} again={again} />;
  const different = data.keys.filter(({ same }) => !same).length;
  const rows = data.keys.filter((row) => (all || !row.same) && found(row.key, [row.a, row.b], search));
  return (
    <div class="panel">
      <div class="toolbar pad">
        <h2>Settings</h2>
        <span>
          <b class="num">{different}</b> of {data.keys.length} differ
        </span>
        {field}
        <label class="field push">
          <input type="checkbox" checked={all} onChange={(event) => setAll(event.currentTarget.checked)} />
          equal ones as well
        </label>
      </div>
      {rows.length === 0 ? (
        <Empty title={different === 0 ? "Both runs have the same settings" : "No setting matches"} />
      ) : (
        <table class="settings difference">
          <thead>
            <tr>
              <th>Setting</th>
              {[a, b].map(({ run, colour }) => (
                <th key={run.id}>
                  <Swatch colour={colour} /> {run.name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map((row) => (
              <tr key={row.key} class={row.same ? "" : "differs"}>
                <th scope="row">{row.key}</th>
                <td class="mono">
                  {row.a === undefined ? <span class="muted">not there</span> : text(row.a)}
                </td>
                <td class="mono">
                  {row.b === undefined ? <span class="muted">not there</span> : text(row.b)}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </div>
  );
}

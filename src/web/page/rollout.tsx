import { useState } from "preact/hooks";
import type { RolloutDetail, RolloutFull, RolloutTable, RunSummary } from "../api.ts";
import { queryOf, runPath, useAnswer } from "./client.ts";
import { figure, signed } from "./format.ts";
import { JudgeScores, judgeOf } from "./judge.tsx";
import { useKeys } from "./keys.tsx";
import { Bar, copyText, Glyph, IconButton, Pending, Segments } from "./parts.tsx";
import { idOf } from "./rollouts.tsx";
import { go, setQuery, useRoute } from "./route.ts";
import { SHADES, type Shade, Tokens, Visible } from "./tokens.tsx";

interface PanelProps {
  readonly run: RunSummary;
  /** KEY or KEY.MODE. */
  readonly id: string;
  readonly table: RolloutTable;
}

/** A rollout with the group it was compared within. */
export function RolloutPanel({ run, id, table }: PanelProps) {
  const { query } = useRoute();
  const dot = id.indexOf(".");
  const key = dot < 0 ? id : id.slice(0, dot);
  const mode = dot < 0 ? null : id.slice(dot + 1);
  const { data, error, loading, again } = useAnswer<RolloutDetail>(
    runPath(run.id, `/rollouts/${encodeURIComponent(key)}${queryOf({ table, mode })}`),
  );
  const shade: Shade = SHADES.find((each) => each.id === query.shade)?.id ?? "logprob";
  const side = query.side === "1";
  const [whole, setWhole] = useState(false);
  const open = (to: string) => go(["run", run.id, "rollouts", to], query);
  const at = data?.group.findIndex((each) => each.key === data.rollout.key) ?? -1;
  const within = (by: number) => {
    if (!data || data.group.length === 0) return;
    open(idOf(data.group[(at + by + data.group.length) % data.group.length]!));
  };
  const setShade = (next: Shade) => setQuery({ shade: next === "logprob" ? null : next });
  const copy = () => {
    if (data) void copyText(JSON.stringify(data.rollout, null, 2), "rollout");
  };
  useKeys({
    h: () => within(-1),
    l: () => within(1),
    t: () => setShade(SHADES[(SHADES.findIndex((each) => each.id === shade) + 1) % SHADES.length]!.id),
    s: () => setQuery({ side: side ? null : "1" }),
    c: copy,
  });

  if (data === null) return <Pending error={error} again={again} />;
  const { rollout, group } = data;
  const neighbour = (to: string | null) => to !== null && open(mode === null ? to : `${to}.${mode}`);
  return (
    <section
      class={`detail${loading ? " loading" : ""}`}
      aria-label={`rollout ${rollout.rollout_index + 1} of prompt ${rollout.prompt_index} at step ${rollout.step}`}
    >
      <div class="panel pad stack">
        <div class="toolbar where">
          <button type="button" class="back" onClick={() => go(["run", run.id, "rollouts"], query)}>
            <Glyph name="left" /> List
          </button>
          <h3>
            Step <span class="num">{rollout.step}</span> · prompt{" "}
            <span class="num">{rollout.prompt_index}</span>
            {rollout.mode === "" ? "" : ` · ${rollout.mode}`}
          </h3>
          <IconButton name="left" label="Group before" onClick={() => neighbour(data.previous)} />
          <IconButton name="right" label="Group after" onClick={() => neighbour(data.next)} />
          <IconButton name="copy" label="Copy as JSON (c)" onClick={copy} />
        </div>
        <div class="prompt-text mono">
          <Visible text={rollout.prompt} />
        </div>
      </div>

      {group.length < 2 ? null : (
        <div class="panel pad stack">
          <div class="toolbar">
            <h2>Group of {group.length}</h2>
            <GroupFigures group={group} />
            <button
              type="button"
              class="push"
              aria-pressed={side}
              title="every completion in full (s)"
              onClick={() => setQuery({ side: side ? null : "1" })}
            >
              {side ? "Strip" : "Side by side"}
            </button>
          </div>
          <div class={side ? "group-side" : "group-strip"}>
            {group.map((each) => (
              <Member
                key={each.key}
                member={each}
                chosen={each.key === rollout.key}
                side={side}
                shade={shade}
                onOpen={() => open(idOf(each))}
              />
            ))}
          </div>
        </div>
      )}

      <div class="panel pad stack">
        <div class="toolbar">
          <h2>Completion #{rollout.rollout_index + 1}</h2>
          <Marks rollout={rollout} />
          <span class="push" />
          {rollout.tokens_of === null ? null : (
            <Segments
              label="Colours (t)"
              choices={SHADES.filter((each) => rollout.advantage !== null || !/advantage|push/.test(each.id))}
              value={shade}
              onChange={setShade}
            />
          )}
        </div>
        {rollout.tokens_of === null ? (
          <div class="mono completion-text">
            <Visible text={rollout.completion} />
          </div>
        ) : (
          <Tokens
            key={rollout.key}
            {...rollout.tokens_of}
            advantage={rollout.advantage}
            shade={shade}
            finish={rollout.finish}
          />
        )}
      </div>

      <Scores rollout={rollout} whole={whole} onWhole={() => setWhole(!whole)} />
    </section>
  );
}

function Marks({ rollout }: { rollout: RolloutFull }) {
  return (
    <>
      <span class="tag">
        reward <b class="num">{figure(rollout.reward, 3)}</b>
      </span>
      {rollout.advantage === null ? null : (
        <span class={`tag ${rollout.advantage > 0 ? "good" : rollout.advantage < 0 ? "bad" : ""}`}>
          advantage <b class="num">{signed(rollout.advantage)}</b>
        </span>
      )}
      {rollout.finish === null ? null : (
        <span class={`tag${rollout.finish === "length" ? " warn" : ""}`}>
          {{ eos: "ended", length: "cut by length", stop: "stopped" }[rollout.finish] ?? rollout.finish}
        </span>
      )}
      {rollout.flagged === true ? (
        <span class="tag bad">
          <Glyph name="flag" /> flagged
        </span>
      ) : null}
    </>
  );
}

function GroupFigures({ group }: { group: readonly RolloutFull[] }) {
  const mean = group.reduce((sum, { reward }) => sum + reward, 0) / group.length;
  const spread = Math.sqrt(group.reduce((sum, { reward }) => sum + (reward - mean) ** 2, 0) / group.length);
  const unique = new Set(group.map(({ completion }) => completion)).size;
  return (
    <span class="muted">
      reward <b class="num">{figure(mean, 3)}</b> ± <b class="num">{figure(spread, 3)}</b> ·{" "}
      <b class="num">{unique}</b> different
    </span>
  );
}

interface MemberProps {
  readonly member: RolloutFull;
  readonly chosen: boolean;
  readonly side: boolean;
  readonly shade: Shade;
  readonly onOpen: () => void;
}

function Member({ member, chosen, side, shade, onOpen }: MemberProps) {
  const sign =
    member.advantage === null || member.advantage === 0 ? "" : member.advantage > 0 ? " up" : " down";
  return (
    <article class={`member${chosen ? " chosen" : ""}${sign}`}>
      <button type="button" class="plain" aria-pressed={chosen} onClick={onOpen}>
        <span class="num">#{member.rollout_index + 1}</span>
        <b class="num">{figure(member.reward, 3)}</b>
        {member.advantage === null ? null : (
          <span class="num advantage-text">{signed(member.advantage, 2)}</span>
        )}
        {member.flagged === true ? <Glyph name="flag" /> : null}
      </button>
      {side && member.tokens_of !== null ? (
        <Tokens {...member.tokens_of} advantage={member.advantage} shade={shade} finish={member.finish} />
      ) : (
        <div class="mono text">
          <Visible text={side ? member.completion : member.completion.slice(0, 160)} />
        </div>
      )}
    </article>
  );
}

interface ScoresProps {
  readonly rollout: RolloutFull;
  readonly whole: boolean;
  readonly onWhole: () => void;
}

function Scores({ rollout, whole, onWhole }: ScoresProps) {
  const parts = Object.entries(rollout.components);
  const judge = judgeOf(rollout.details);
  const others = Object.entries(rollout.details ?? {}).filter(([name]) => name !== "judge" || judge === null);
  if (parts.length === 0 && judge === null && others.length === 0) return null;
  const greatest = Math.max(1e-9, ...parts.map(([, value]) => Math.abs(value)));
  return (
    <div class="panel pad stack">
      <h2>Reward</h2>
      {parts.length === 0 ? null : (
        <table class="components">
          <tbody>
            {parts.map(([name, value]) => (
              <tr key={name}>
                <th scope="row">{name}</th>
                <td class="num">{figure(value)}</td>
                <td class="amount">
                  <Bar share={Math.abs(value) / greatest} kind={value < 0 ? "down" : "up"} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {judge === null ? null : <JudgeScores judge={judge} />}
      {others.length === 0 ? null : (
        <div class="stack">
          <button type="button" class="link" aria-expanded={whole} onClick={onWhole}>
            {whole ? "hide" : "show"} what else its reward says
          </button>
          {whole ? <pre>{JSON.stringify(Object.fromEntries(others), null, 2)}</pre> : null}
        </div>
      )}
    </div>
  );
}

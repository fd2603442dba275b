import { useEffect, useState } from "preact/hooks";
import type { CheckpointInfo, DeleteAnswer, Job, JobList, RunDetail, RunSummary } from "../api.ts";
import { type Answer, ask, post, runPath } from "./client.ts";
import { ago, bytes, count, dateTime } from "./format.ts";
import { jobs } from "./live.ts";
import { Dialog, Empty, Failure, Glyph, Pending, say } from "./parts.tsx";
import { hashOf } from "./route.ts";
import { useStore } from "./store.ts";

const checkpointPath = (run: string, name: string, action: string): string =>
  runPath(run, `/checkpoints/${encodeURIComponent(name)}/${action}`);

export function CheckpointsTab({ run, detail }: { run: RunSummary; detail: Answer<RunDetail> }) {
  const [doomed, setDoomed] = useState<CheckpointInfo | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const all = useStore(jobs);
  useEffect(() => {
    ask<JobList>("/api/jobs").then(
      (list) => jobs.set(list.jobs),
      () => {},
    );
  }, []);
  if (detail.data === null) return <Pending error={detail.error} again={detail.again} />;
  const { checkpoints } = detail.data;
  if (checkpoints.length === 0)
    return (
      <Empty title="No checkpoints yet">
        <p>
          {run.state === "live"
            ? "They are listed here as soon as the run saves one."
            : "This run ended before it saved one, or they were deleted."}
        </p>
      </Empty>
    );
  const evaluate = async (name: string) => {
    setError(null);
    try {
      const job = await post<Job>(checkpointPath(run.id, name, "evaluate"), {});
      jobs.set([...jobs.get().filter(({ id }) => id !== job.id), job]);
      say(`${name} is being evaluated`);
    } catch (failed) {
      setError(failed as Error);
    }
  };
  const mine = all.filter((job) => job.run === run.id).sort((a, b) => b.started - a.started);
  return (
    <div class="stack">
      {error === null ? null : <Failure error={error} />}
      <div class="panel">
        <table class="checkpoints">
          <thead>
            <tr>
              <th>Checkpoint</th>
              <th class="num">Step</th>
              <th>Kind</th>
              <th class="num">Size</th>
              <th>Written</th>
              <th>
                <span class="hidden">actions</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {[...checkpoints]
              .sort((a, b) => b.written - a.written)
              .map((checkpoint) => (
                <tr key={checkpoint.name}>
                  <td>
                    <b>{checkpoint.name}</b>
                    {checkpoint.whole ? null : <span class="tag bad">damaged</span>}
                  </td>
                  <td class="num">{checkpoint.step === null ? "–" : count(checkpoint.step)}</td>
                  <td>{checkpoint.kind.replace("_", " ")}</td>
                  <td class="num">{bytes(checkpoint.bytes)}</td>
                  <td title={dateTime(checkpoint.written)}>{ago(checkpoint.written)}</td>
                  <td class="actions">
                    {checkpoint.whole && checkpoint.kind !== "reward_model" ? (
                      <a
                        class="button"
                        title="beside the model that the run began with"
                        href={hashOf(["chat"], { m: `${run.id}_base,${run.id}_${checkpoint.name}` })}
                      >
                        <Glyph name="chat" /> Chat
                      </a>
                    ) : null}
                    {checkpoint.whole ? (
                      <button type="button" onClick={() => void evaluate(checkpoint.name)}>
                        <Glyph name="play" /> Evaluate
                      </button>
                    ) : null}
                    <button
                      type="button"
                      class="danger"
                      aria-label={`Delete ${checkpoint.name}`}
                      onClick={() => setDoomed(checkpoint)}
                    >
                      <Glyph name="trash" /> Delete
                    </button>
                  </td>
                </tr>
              ))}
          </tbody>
        </table>
      </div>
      {mine.length === 0 ? null : (
        <section class="stack" aria-label="Evaluations">
          <h2>Evaluations</h2>
          {mine.map((job) => (
            <JobPanel key={job.id} job={job} />
          ))}
        </section>
      )}
      {doomed === null ? null : (
        <DeleteDialog
          run={run}
          checkpoint={doomed}
          onClose={() => setDoomed(null)}
          onDone={() => {
            setDoomed(null);
            say(`${doomed.name} is deleted`);
            detail.again();
          }}
        />
      )}
    </div>
  );
}

function JobPanel({ job }: { job: Job }) {
  const [error, setError] = useState<Error | null>(null);
  const kind = { running: "good", done: "", failed: "bad", stopped: "warn" }[job.state];
  return (
    <div class="panel pad stack job">
      <div class="toolbar">
        <h3>{job.checkpoint}</h3>
        <span class={`tag ${kind}`}>{job.state}</span>
        <span class="muted">{ago(job.started)}</span>
        {job.state === "running" ? (
          <button
            type="button"
            class="push"
            onClick={() => post<Job>(`/api/jobs/${encodeURIComponent(job.id)}/stop`, {}).catch(setError)}
          >
            Stop
          </button>
        ) : null}
      </div>
      {error === null ? null : <Failure error={error} />}
      {job.result === null || job.result === undefined ? null : (
        <pre>{JSON.stringify(job.result, null, 2)}</pre>
      )}
      {job.lines.length === 0 || job.state === "done" ? null : (
        <pre class="muted">{job.lines.join("\n")}</pre>
      )}
    </div>
  );
}

interface DeleteProps {
  readonly run: RunSummary;
  readonly checkpoint: CheckpointInfo;
  readonly onClose: () => void;
  readonly onDone: () => void;
}

/** Asks the server what would be lost, and deletes when the checkpoint's name has been typed. */
function DeleteDialog({ run, checkpoint, onClose, onDone }: DeleteProps) {
  const [answer, setAnswer] = useState<Extract<DeleteAnswer, { deleted: false }> | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [typed, setTyped] = useState("");
  const path = checkpointPath(run.id, checkpoint.name, "delete");
  useEffect(() => {
    post<DeleteAnswer>(path, {}).then((said) => {
      if (!said.deleted) setAnswer(said);
    }, setError);
  }, []);
  const remove = async () => {
    try {
      const said = await post<DeleteAnswer>(path, { confirm: answer!.confirm });
      if (said.deleted) onDone();
      else setAnswer(said);
    } catch (failed) {
      setError(failed as Error);
    }
  };
  return (
    <Dialog title={`Delete ${checkpoint.name} of ${run.name}?`} onClose={onClose}>
      {error === null ? null : <Failure error={error} />}
      {answer === null ? (
        error === null ? (
          <p class="muted">asking what would be lost</p>
        ) : null
      ) : (
        <form
          class="stack"
          onSubmit={(event) => {
            event.preventDefault();
            if (typed === checkpoint.name) void remove();
          }}
        >
          <p>
            {answer.consequence} It frees {bytes(answer.bytes)} and cannot be undone.
          </p>
          <label class="stack">
            <span>
              Type <b class="mono">{checkpoint.name}</b> to delete it:
            </span>
            <input
              type="text"
              value={typed}
              autocomplete="off"
              spellcheck={false}
              onInput={(event) => setTyped(event.currentTarget.value)}
            />
          </label>
          <div class="toolbar">
            <button type="submit" class="danger primary" disabled={typed !== checkpoint.name}>
              Delete
            </button>
            <button type="button" onClick={onClose}>
              Keep it
            </button>
          </div>
        </form>
      )}
    </Dialog>
  );
}

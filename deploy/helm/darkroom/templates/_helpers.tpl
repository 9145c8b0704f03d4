{{/* The prefix of every name: the release's own, if it says darkroom. */}}
{{- define "darkroom.fullname" -}}
{{- if contains "darkroom" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-darkroom{{ end }}
{{- end }}

{{/* What a Service, a policy or a budget chooses pods by: (list $ component). */}}
{{- define "darkroom.selector" -}}
app.kubernetes.io/name: darkroom
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "darkroom.labels" -}}
{{ include "darkroom.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{/* An image of the project: (list $ "api"). */}}
{{- define "darkroom.image" -}}
{{- with index . 0 -}}
{{ .Values.image.registry }}/darkroom-{{ index $ 1 }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* What the restricted standard of Kubernetes asks of a pod: (list $ user). */}}
{{- define "darkroom.podSecurity" -}}
automountServiceAccountToken: false
{{- with (index . 0).Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ index . 1 }}
  runAsGroup: {{ index . 1 }}
  fsGroup: {{ index . 1 }}
  fsGroupChangePolicy: OnRootMismatch # a cache of 100 GB is not chowned at each start
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "darkroom.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Keys of the Secret as files: (list $ "key" …). */}}
{{- define "darkroom.secrets" -}}
name: secrets
secret:
  secretName: {{ (index . 0).Values.existingSecret }}
  defaultMode: 288 # 0440
  items:
    {{- range rest . }}
    - {key: {{ . }}, path: {{ . }}}
    {{- end }}
{{- end }}

{{/* Those that the API and the workers read, and further ones: (list $ "key" …). They are not in
/run/secrets, the default: clouds mount the tokens of roles into it, which nothing may cover. */}}
{{- define "darkroom.ownSecrets" -}}
{{- $values := (index . 0).Values }}
{{- $s3 := $values.s3Keys | ternary (list "darkroom_s3_access_key" "darkroom_s3_secret_key") list }}
{{- include "darkroom.secrets" (concat . (list "darkroom_database_url" "darkroom_redis_url" "darkroom_metrics_token") $s3 $values.extraSecretKeys) }}
{{- end }}

{{/* The volume that backups are saved to. */}}
{{- define "darkroom.backups" -}}
{name: backups, persistentVolumeClaim: {claimName: {{ .Values.backup.volume.claim | default (print (include "darkroom.fullname" .) "-backup") }}}}
{{- end }}

{{/* A changed setting or model is a rollout. */}}
{{- define "darkroom.checksums" -}}
checksum/settings: {{ include (print $.Template.BasePath "/settings.yaml") . | sha256sum }}
{{- end }}

{{- define "darkroom.settings" -}}
DARKROOM_MODELS_FILE: /etc/darkroom/models.toml
DARKROOM_SECRETS_DIR: /etc/darkroom-secrets
DARKROOM_METRICS_HOST: 0.0.0.0
DARKROOM_METRICS_PORT: "9464"
{{- range $name, $value := .Values.settings }}
{{ $name }}: {{ include "darkroom.text" $value }}
{{- end }}
{{- end }}

{{/* A setting as a string. Numbers of a values file are floats, and `quote` writes 1.6777216e+07. */}}
{{- define "darkroom.text" -}}
{{ kindIs "float64" . | ternary (toJson .) . | quote }}
{{- end }}

{{/* Pods of one component on machines of their own, as far as there are enough. */}}
{{- define "darkroom.spread" -}}
- maxSkew: 1
  topologyKey: {{ index . 2 }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector: {matchLabels: {{ include "darkroom.selector" . | fromYaml | toJson }}}
{{- end }}

{{/* A worker asks for its own state: an outage heals itself, and restarts would only prolong it. */}}
{{- define "darkroom.workerProbes" -}}
startupProbe: {httpGet: {path: /startupz, port: metrics}, periodSeconds: 10, failureThreshold: {{ . }}}
livenessProbe: {httpGet: {path: /healthz, port: metrics}, periodSeconds: 15, timeoutSeconds: 5, failureThreshold: 4}
readinessProbe: {httpGet: {path: /readyz, port: metrics}, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 2}
{{- end }}

{{/* Components that speak to Postgres, Redis and S3. */}}
{{- define "darkroom.withData" -}}
matchLabels: {app.kubernetes.io/name: darkroom, app.kubernetes.io/instance: {{ .Release.Name }}}
matchExpressions:
  - {key: app.kubernetes.io/component, operator: In, values: {{ concat (list "api" "backup" "cpu-worker" "prepare") (keys .Values.generateWorkers | sortAlpha) | toJson }}}
{{- end }}

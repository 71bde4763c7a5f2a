{{- define "warmroute.poolNamespace" -}}
{{ .Values.pool.namespace | default .Release.Namespace }}
{{- end }}

{{- define "warmroute.selectorLabels" -}}
app.kubernetes.io/name: warmroute
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "warmroute.labels" -}}
{{ include "warmroute.selectorLabels" . }}
app.kubernetes.io/component: endpoint-picker
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "warmroute.metadata" -}}
name: {{ .Release.Name }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "warmroute.labels" . | nindent 2 }}
{{- end }}

{{- define "warmroute.poolSelector" -}}
{{- if not .Values.pool.selector }}
{{- fail "pool.selector is required: the labels of the pool's pods" }}
{{- end }}
{{- toYaml .Values.pool.selector }}
{{- end }}

{{- define "warmroute.natsLabels" -}}
app.kubernetes.io/name: warmroute-nats
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "warmroute.natsMetadata" -}}
name: {{ .Release.Name }}-nats
namespace: {{ .Release.Namespace }}
labels:
  {{- include "warmroute.natsLabels" . | nindent 2 }}
{{- end }}
